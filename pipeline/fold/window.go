package fold

import (
	"strings"
	"time"

	"millrace/pipeline"
)

// A Window defines the windows of a projection with one state for each key and
// window of event time. The zero value means one state for each key.
//
// The clock of a partition is the latest event time in the partition so far. It
// depends only on the events and never goes back, so the same events are late on
// every replay.
type Window struct {
	Size      time.Duration // length of a window
	Every     time.Duration // from the start of a window to the next start; equal to Size if windows do not overlap
	Grace     time.Duration // time after its end in which a window accepts events, by the clock of the partition
	Retention time.Duration // time after its end in which its state is kept, by that clock; 0 means forever
}

// MaxOverlap is the maximum number of windows that contain the same event.
const MaxOverlap = 1000

// Starts appends the starts of the windows that contain a time, in ascending
// order. Times are in microseconds since 1970. One window starts at 0.
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

// Closed reports whether the window that starts at start accepts no more events, at
// a time of the clock of the partition.
func (w Window) Closed(start, clock int64) bool {
	return start+w.Size.Microseconds()+w.Grace.Microseconds() <= clock
}

// EarliestKept returns the earliest start of a window whose state is still kept, at a
// time of the clock of the partition. ok is false if all windows are kept. A state
// is always kept at least for Grace.
func (w Window) EarliestKept(clock int64) (start int64, ok bool) {
	if w.Retention == 0 {
		return 0, false
	}
	return clock - w.Size.Microseconds() - max(w.Retention, w.Grace).Microseconds() + 1, true
}

// AppendWindowID appends the id of the aggregate of a key in a window, such as
// key@2026-01-01T10:00:00Z.
func AppendWindowID(dst []byte, key []byte, start int64) []byte {
	dst = append(append(dst, key...), '@')
	return pipeline.UnixMicro(start).Append(dst)
}

// hasID reports whether the ids of all windows that contain a time can be parsed again.
func (w Window) hasID(micros int64) bool {
	// 1 January of year 1 and 31 December 9999
	const first, last = -62135596800_000000, 253402300799_999999
	return micros <= last && micros >= first+w.Size.Microseconds()
}

// ParseWindowID returns the key and the start of the window in an id of
// [AppendWindowID]. ok is false for other ids.
func ParseWindowID(id string) (key string, start int64, ok bool) {
	i := strings.LastIndexByte(id, '@')
	if i < 0 {
		return "", 0, false
	}
	at, err := pipeline.ParseTime(id[i+1:])
	if err != nil || at.String() != id[i+1:] {
		return "", 0, false // also a time that is written in another way
	}
	return id[:i], at.UnixMicro(), true
}
