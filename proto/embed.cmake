# The bytes of INPUT as the array of proto/descriptors.h:
#   cmake -DINPUT=descriptors.pb -DOUTPUT=descriptors.c -P embed.cmake
file(READ ${INPUT} hex HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
string(REPEAT "." 80 line)
string(REGEX REPLACE "(${line})" "\\1\n" bytes "${bytes}")
file(WRITE ${OUTPUT} "#include \"proto/descriptors.h\"\n
const unsigned char mu_descriptor_set[] = {\n${bytes}};
const size_t mu_descriptor_set_bytes = sizeof mu_descriptor_set;\n")
