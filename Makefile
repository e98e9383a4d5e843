# Entry points. The build itself is CMakeLists.txt with CMakePresets.json: docs/building.md.
#   make wheel | manylinux | python-test: the Python package
#   make test | faults | demo [MODEL=dir] | bench [MODEL=dir] | fuzz [FUZZ_SECONDS=60] | m32 | aarch64 | check | interop | clean
export PATH := $(CURDIR)/build/tools/bin:$(PATH)
FUZZ_SECONDS ?= 60
CMAKE_FLAGS ?=
build = cmake --preset $(1) --log-level=WARNING $(CMAKE_FLAGS) $(2) && cmake --build --preset $(1)
run_tests = ctest --preset $(1) -j "$$(nproc)"

.PHONY: all demo test faults bench fuzz m32 aarch64 check interop wheel manylinux python-test clean
all:
	@tools/bootstrap
	@$(call build,release)
test: all
	@$(call run_tests,release)
faults: all
	@build/release/tests/faults --heft build/release/heft
demo: all
	@HEFT=build/release/heft tools/demo $(if $(MODEL),"$(MODEL)")
bench: all
	@HEFT=build/release/heft tools/demo --table $(if $(MODEL),"$(MODEL)")
	@tools/bench
interop: all
	@tools/bootstrap --interop
	@HEFT=build/release/heft tests/interop/run
check: all
	@tools/bootstrap --check
	@tools/check_rooms
	@tools/check_style
	@$(call build,debug-asan) && $(call run_tests,debug-asan)
	@$(call build,tsan) && $(call run_tests,tsan)
fuzz:
	@tools/bootstrap --fuzz
	@$(call build,fuzz,-DCMAKE_C_COMPILER="$$(command -v clang-14 || command -v clang)")
	@tests/fuzz/run build/fuzz/tests/fuzz $(FUZZ_SECONDS)
m32:
	@tools/bootstrap --m32
	@tools/get_libraries i386
	@$(call build,m32) && $(call run_tests,m32)
aarch64:
	@tools/bootstrap --aarch64
	@tools/get_libraries arm64
	@$(call build,aarch64) && $(call run_tests,aarch64)
wheel:
	@tools/bootstrap --python
	@tools/python_wheel
manylinux:
	@tools/bootstrap --python
	@tools/python_wheel --manylinux
python-test: wheel
	@python/tests/run
clean:
	@rm -rf build
