package fold

// ReservedKeys is the prefix of the keys that a projector uses for its own records on a
// snapshots topic. It is a zero byte, with which no aggregate's id starts.
const ReservedKeys = "\x00"
