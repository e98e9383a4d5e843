/* treemap.c - a page that shows a checkpoint as nested boxes, each as large as its bytes.
 *
 * One file with nothing to fetch: the tensors as JSON, and a script that lays them out by the parts
 * of their names. Names may be hostile: they reach the page as JSON with every '<' escaped, and as
 * text nodes from there. */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

static const char head[] =
    "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
    "<meta name=\"viewport\" content=\"width=device-width\"><title>heft inspect</title>\n<style>\n"
    "body{font:13px system-ui,sans-serif;margin:12px;color:#222}"
    "#map{position:relative;width:100%;height:82vh;border:1px solid #999}"
    ".box{position:absolute;overflow:hidden;box-sizing:border-box;border:1px solid rgba(0,0,0,.35);"
    "white-space:nowrap;font-size:11px;line-height:14px;padding-left:3px}"
    "#at{min-height:1.5em}.box.no{opacity:.25}.box.no .box:not(.no){opacity:1}input{font:inherit}\n"
    "@media(prefers-color-scheme:dark){:root{color-scheme:dark}body{background:#161616;color:#"
    "e6e6e6}"
    ".box{border-color:rgba(255,255,255,.3)}#map{border-color:#666}}\n</style></head>"
    "<body>\n<h1 id=\"title\"></h1><p id=\"sum\"></p><p><label>Search <input "
    "id=\"find\" type=\"search\"></label> <span id=\"found\"></span></p><p id=\"at\">Point to a "
    "box.</p><div "
    "id=\"map\"></div>\n<noscript>This page requires JavaScript.</noscript>\n"
    "<script type=\"application/json\" id=\"data\">";

static const char script[] =
    "</script>\n<script>\n'use strict';\n"
    "const data=JSON.parse(document.getElementById('data').textContent),map="
    "document.getElementById('map'),at=document.getElementById('at');\n"
    "const size=b=>b<1e3?b+' B':b<1e6?(b/1e3).toFixed(1)+' KB':b<1e9?(b/1e6).toFixed(1)+' "
    "MB':(b/1e9)"
    ".toFixed(2)+' GB';\n"
    "const root={name:'',path:'',bytes:0,children:new Map()};\n"
    "for(const t of data.tensors){let n=root;n.bytes+=t.bytes;let path='';for(const p of "
    "t.name.split('.')){path=path?path+'.'+p:p;let "
    "c=n.children.get(p);if(!c){c={name:p,path,bytes:0,"
    "children:new Map()};n.children.set(p,c)}c.bytes+=t.bytes;n=c}n.tensor=t}\n"
    "const dark=matchMedia('(prefers-color-scheme:dark)'),find=document.getElementById('find'),"
    "hit=p=>p.toLowerCase().includes(find.value.trim().toLowerCase());\n"
    "let colors={};const color=d=>colors[d]=colors[d]||`hsl(${Object.keys(colors).length*67+205} "
    "45% ${dark.matches?28:82}%)`;\n"
    "function place(list,x,y,w,h,depth,parent){let total=list.reduce((s,n)=>s+n.bytes,0);"
    "list.sort((a,b)=>b.bytes-a.bytes);while(list.length&&total>0){const side=Math.min(w,h);let "
    "row=[],sum=0,worst=Infinity;while(list.length){const n=list[0],s=sum+n.bytes,area=w*h/total,"
    "thick=s*area/side,ratio=Math.max(...[...row,n].map(m=>{const l=m.bytes*area/thick;return "
    "Math.max(l/thick,thick/l)}));if(row.length&&ratio>worst)break;row.push(list.shift());sum=s;"
    "worst=ratio}const thick=sum/total*(w>h?w:h);let o=0;for(const n of row){const "
    "l=n.bytes/sum*side;"
    "w>h?draw(n,x,y+o,thick,l,depth,parent):draw(n,x+o,y,l,thick,depth,parent);o+=l}total-=sum;"
    "if(w>h){x+=thick;w-=thick}else{y+=thick;h-=thick}}}\n"
    "function draw(n,x,y,w,h,depth,parent){if(w<2||h<2)return;const "
    "b=document.createElement('div');"
    "b.className='box';Object.assign(b.style,{left:x+'px',top:y+'px',width:w+'px',height:h+'px',"
    "background:n.tensor?color(n.tensor.dtype):`hsl(0 0% "
    "${dark.matches?12+depth*4:97-depth*4}%)`});if(!hit(n.path))b.classList.add('no');"
    "if(w>30&&h>13)b.append(n.name+(w>120?'  "
    "'+size(n.bytes):''));b.onmouseover=e=>{e.stopPropagation();at.textContent=n.path+': "
    "'+size(n.bytes)+"
    "(n.tensor?', '+n.tensor.dtype+' ['+n.tensor.shape+']'+(n.tensor.file?', "
    "'+n.tensor.file:''):'')};"
    "parent.append(b);if(n.children.size&&w>8&&h>20)place([...n.children.values()],1,14,w-4,h-17,"
    "depth+1,b)}\n"
    "document.getElementById('title').textContent=data.title;document.getElementById('sum')."
    "textContent=data.tensors.length+' tensors, '+size(root.bytes);\n"
    "function all(){map.textContent='';colors={};const hits=data.tensors.filter(t=>hit(t.name));"
    "document.getElementById('found').textContent=find.value.trim()?hits.length+' tensors, '+"
    "size(hits.reduce((s,t)=>s+t.bytes,0)):'';place([...root.children.values()],0,0,map."
    "clientWidth,"
    "map.clientHeight,0,map)}all();addEventListener('resize',all);find.oninput=all;dark.onchange="
    "all;\n</script></body></html>\n";

/* The tensors as JSON in memory, owned; NULL without memory. */
static char *list_tensors(const cli_listing *list, const char *title)
{
    char *text = NULL;
    size_t length = 0;
    FILE *memory = open_memstream(&text, &length);
    if (!memory) {
        return NULL;
    }
    cli_json json = {.out = memory};
    cli_json_open(&json, NULL, '{');
    cli_json_string(&json, "title", title);
    cli_json_open(&json, "tensors", '[');
    for (size_t i = 0; i < list->count; i++) {
        const heft_tensor_info *info = &list->infos[i];
        if (!list->repeated[i]) {
            cli_json_open(&json, NULL, '{');
            cli_json_string(&json, "name", info->name);
            cli_json_string(&json, "dtype", heft_dtype_name(info->dtype));
            cli_json_shape(&json, "shape", info->shape, info->rank);
            cli_json_string(&json, "file", info->file);
            cli_json_u64(&json, "bytes", info->size_bytes);
            cli_json_close(&json, '}');
        }
    }
    cli_json_close(&json, ']');
    cli_json_close(&json, '}');
    bool good = fclose(memory) == 0;
    if (!good) {
        free(text);
    }
    return good ? text : NULL;
}

/* JSON inside of a page: a '<' occurs in strings only and could end the script. */
static void put_escaped(FILE *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '<') {
            fputs("\\u003c", out);
        } else {
            putc(*text, out);
        }
    }
}

bool cli_treemap_write(cli_run *run, const cli_listing *list, const char *title, const char *path,
                       heft_error *err)
{
    char *data = list_tensors(list, title), *page = NULL;
    size_t size = 0;
    FILE *out = data ? open_memstream(&page, &size) : NULL;
    bool good = out != NULL;
    if (good) {
        fputs(head, out);
        put_escaped(out, data);
        fputs(script, out);
        good = !ferror(out);
        good = fclose(out) == 0 && good;
    }
    free(data);
    if (good && strcmp(path, "-") == 0) {
        fwrite(page, 1, size, stdout); /* cli_finish_stdout() tells of failures */
        free(page);
        return true;
    }
    good = good ? heft_file_write(run->ctx, path, page, size, err) == HEFT_OK
                : cli_refuse(err, "--html", "cannot allocate memory for the page");
    free(page);
    return good;
}
