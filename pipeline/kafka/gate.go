package kafka

import (
	"fmt"
	"math"
	"time"

	"millrace/pipeline"
)

// A Gate checks records of a topic before they are written. A broker refuses a whole
// batch because of one record that its topic does not accept, so each record is checked
// alone, and the fault of one does not hold up the others.
//
// A Gate belongs to one goroutine.
type Gate struct {
	topic string
	limit Limit
	size  int // largest size of a record, in bytes
	now   func() time.Time

	// The accepted record times at the last look at the clock, in milliseconds since
	// 1970. The clock is read again only for a time outside.
	earliest, latest int64
}

// Gate returns the gate of a topic. now is the clock.
func (l Limits) Gate(topic string, now func() time.Time) *Gate {
	g := &Gate{topic: topic, limit: l[topic], size: l.MaxRecord(topic), now: now}
	g.look()
	return g
}

// MaxRecord returns the largest size of a record, in bytes.
func (g *Gate) MaxRecord() int { return g.size }

// Check returns an error of [pipeline.ClassReject] if the topic does not accept a record
// of this size ([pipeline.Record.Size]), with this key and this time. It names the topic
// and the setting.
func (g *Gate) Check(size int, key []byte, at time.Time) error {
	if size > g.size && g.limit.By != "" {
		return pipeline.Reject(pipeline.ReasonTooLarge, "%d bytes, but this program writes at most %d to %s: %s", size, g.size, g.topic, g.limit.By)
	}
	if size > g.size {
		return pipeline.Reject(pipeline.ReasonTooLarge, "%d bytes, but %s takes at most %d", size, g.topic, g.size)
	}
	if key == nil && g.limit.Keyed {
		return pipeline.Reject(pipeline.ReasonNoKey, "no key, but %s is compacted (cleanup.policy) and takes no record without one", g.topic)
	}
	if ms := at.UnixMilli(); ms < g.earliest || ms > g.latest {
		return g.checkTime(at)
	}
	return nil
}

// Time returns the time for a record whose own time is at: at if the topic accepts it,
// else the current time, which every topic accepts.
func (g *Gate) Time(at time.Time) time.Time {
	if ms := at.UnixMilli(); (ms < g.earliest || ms > g.latest) && g.checkTime(at) != nil {
		return g.now()
	}
	return at
}

// look sets the accepted times by the clock. earliest moves with the clock, so with
// Before every check reads the clock.
func (g *Gate) look() {
	g.earliest, g.latest = firstMilli, lastMilli
	if g.limit.AppendTime {
		g.earliest, g.latest = math.MinInt64, math.MaxInt64
		return
	}
	if g.limit.Before > 0 {
		g.earliest = math.MaxInt64
	}
	if g.limit.After > 0 {
		g.latest = g.now().Add(g.limit.After).UnixMilli()
	}
}

// checkTime checks a time by the current clock.
func (g *Gate) checkTime(at time.Time) error {
	ms, now := at.UnixMilli(), g.now()
	g.look()
	if err := checkTime(at); err != nil && !g.limit.AppendTime {
		return pipeline.Reject(pipeline.ReasonBadTime, "%w", err)
	}
	var why string
	switch {
	case g.limit.After > 0 && ms > now.Add(g.limit.After).UnixMilli():
		why = fmt.Sprintf("%s takes at most %v ahead of the clock (message.timestamp.after.max.ms)", g.topic, g.limit.After)
	case g.limit.Before > 0 && ms < now.Add(-g.limit.Before).UnixMilli():
		why = fmt.Sprintf("%s takes at most %v before the clock (message.timestamp.before.max.ms)", g.topic, g.limit.Before)
	default:
		return nil
	}
	return pipeline.Reject(pipeline.ReasonBadTime, "the time %s: %s", pipeline.Time(at), why)
}
