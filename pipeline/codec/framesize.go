package codec

// FrameSize is the number of bytes that [AppendFrame] appends.
const FrameSize = 5
