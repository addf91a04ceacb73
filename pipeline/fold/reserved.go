package fold

// ReservedKeys starts the keys of a projector's own records among the snapshots.
// It is a zero byte, with which no aggregate's id starts.
const ReservedKeys = "\x00"
