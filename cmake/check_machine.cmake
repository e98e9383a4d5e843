# Which machines heft is for. Included by CMakeLists.txt; as a script it checks CMAKE_C_BYTE_ORDER only:
# cmake -DCMAKE_C_BYTE_ORDER=BIG_ENDIAN -P cmake/check_machine.cmake
if(NOT CMAKE_C_BYTE_ORDER STREQUAL "LITTLE_ENDIAN")
    message(FATAL_ERROR "heft requires a little-endian machine: it uses the files' little-endian data directly (byte order here: ${CMAKE_C_BYTE_ORDER})")
endif()
