# Which machines heft is for. Included by CMakeLists.txt; as a script it checks CMAKE_C_BYTE_ORDER only:
# cmake -DCMAKE_C_BYTE_ORDER=BIG_ENDIAN -P cmake/check_machine.cmake
if(NOT CMAKE_C_BYTE_ORDER STREQUAL "LITTLE_ENDIAN")
    message(FATAL_ERROR "heft needs a little-endian machine: checkpoints hold little-endian numbers, which it uses as they lie in their files (byte order here: ${CMAKE_C_BYTE_ORDER})")
endif()
