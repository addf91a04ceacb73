package fold

import (
	"strings"
	"time"
)

// A Window says that a projection has a state for each key and each stretch of
// event time. The zero value says that it has one for each key alone.
//
// Time is that of the events: the clock of a partition is the latest event time
// that was in it so far, and never goes back. So what is late is the same on
// every replay.
type Window struct {
	Size  time.Duration // of a window
	Every time.Duration // from one window's start to the next; Size if they do not overlap
	Grace time.Duration // how long after its end a window takes events, by the partition's clock
	Keep  time.Duration // how long after its end its state is kept, by that clock; 0: for ever
}

// MaxOverlap bounds into how many windows one event falls.
const MaxOverlap = 1000

// Starts appends the starts of the windows that a time falls into, the earliest
// first. Times are microseconds since 1970, and a window begins there.
func (w Window) Starts(dst []int64, micros int64) []int64 {
	size, every := w.Size.Microseconds(), w.Every.Microseconds()
	last := micros - floorMod(micros, every)
	first := last - (size-1-(micros-last))/every*every
	for start := first; start <= last; start += every {
		dst = append(dst, start)
	}
	return dst
}

func floorMod(a, b int64) int64 { return ((a % b) + b) % b }

// Closed reports whether the window that begins at start takes no more events when
// the partition's clock is at a time.
func (w Window) Closed(start, clock int64) bool {
	return start+w.Size.Microseconds()+w.Grace.Microseconds() <= clock
}

// KeptFrom returns the start of the first window that is still kept when the
// clock is at a time, and whether any are not.
func (w Window) KeptFrom(clock int64) (start int64, ok bool) {
	if w.Keep == 0 {
		return 0, false
	}
	return clock - w.Size.Microseconds() - max(w.Keep, w.Grace).Microseconds() + 1, true
}

// AppendWindowID appends the id of the aggregate that is a key's state in a
// window: key@2026-01-01T10:00:00Z.
func AppendWindowID(dst []byte, key []byte, start int64) []byte {
	dst = append(append(dst, key...), '@')
	return time.UnixMicro(start).UTC().AppendFormat(dst, time.RFC3339Nano)
}

// WindowKey returns the key in an id of [AppendWindowID], and the id itself if it
// is none.
func WindowKey(id string) string {
	if i := strings.LastIndexByte(id, '@'); i >= 0 {
		return id[:i]
	}
	return id
}

// WindowStart returns the start of the window in an id of [AppendWindowID], and
// whether it is one.
func WindowStart(id string) (micros int64, ok bool) {
	at, err := time.Parse(time.RFC3339Nano, strings.TrimPrefix(id, WindowKey(id)+"@"))
	return at.UnixMicro(), err == nil
}
