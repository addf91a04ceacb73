package producer

import (
	"context"
	"maps"
	"sync"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/kafka"
)

// redriveHandler sends letters back. It is the [pipeline.Handler] of a loop with
// one session, which owns every field without another owner.
type redriveHandler struct {
	filter  *letterFilter
	limit   int // maximum number of letters to send back; 0: no limit
	pace    *pace
	pending map[letterPlace]kafka.Bounds // the letters to handle; never changed
	limits  kafka.Limits                 // of the topics' records
	gates   map[string]*kafka.Gate       // by topic, by limits
	now     func() time.Time
	stop    func() // called when all pending letters are handled

	batch redriveCounts         // of the current batch
	seen  map[letterPlace]int64 // next offsets of the current batch

	mu    sync.Mutex            // guards total and done
	total redriveCounts         // of the committed batches
	done  map[letterPlace]int64 // committed next offsets
}

// redriveCounts counts letters by result. It is also the JSON of the summary.
type redriveCounts struct {
	Sent   int            `json:"sent"`             // back to their source topics
	To     map[string]int `json:"to"`               // Sent, by topic
	Stayed map[string]int `json:"stayed,omitempty"` // by reason
}

func (c *redriveCounts) add(other *redriveCounts) {
	c.Sent += other.Sent
	for _, m := range []struct {
		to   *map[string]int
		from map[string]int
	}{{&c.To, other.To}, {&c.Stayed, other.Stayed}} {
		for k, n := range m.from {
			count(m.to, k, n)
		}
	}
}

func count(m *map[string]int, key string, n int) {
	if *m == nil {
		*m = map[string]int{}
	}
	(*m)[key] += n
}

var (
	_ kafka.SizeLimited = (*redriveHandler)(nil)
	_ kafka.Refuser     = (*redriveHandler)(nil)
)

// SetLimits implements [kafka.SizeLimited].
func (h *redriveHandler) SetLimits(limits kafka.Limits) { h.limits, h.gates = limits, nil }

// gate returns the gate of a topic.
func (h *redriveHandler) gate(topic string) *kafka.Gate {
	if h.gates == nil {
		h.gates = map[string]*kafka.Gate{}
	}
	g := h.gates[topic]
	if g == nil {
		g = h.limits.Gate(topic, h.now)
		h.gates[topic] = g
	}
	return g
}

// Refuse implements [kafka.Refuser]: the letter stays.
func (h *redriveHandler) Refuse(_ context.Context, in *pipeline.Record, _ error, out pipeline.Emitter) error {
	back := deadletter.Original(in)
	why := h.stays(in, &back)
	if why == "" {
		why = staysRefused
	}
	h.keep(in, h.now(), why, out)
	return nil
}

// keep writes a letter that stays again, so the topic can be trimmed to the letters of the
// run.
func (h *redriveHandler) keep(in *pipeline.Record, at time.Time, why string, out pipeline.Emitter) {
	if why != staysLater {
		count(&h.batch.Stayed, why, 1)
	}
	letter := deadletter.Copy(in)
	deadletter.SetTime(&letter, at)
	out.Emit(&letter)
}

// Handle implements [pipeline.Handler].
func (h *redriveHandler) Handle(ctx context.Context, in *pipeline.Record, out pipeline.Emitter) error {
	back := deadletter.Original(in)
	if why := h.stays(in, &back); why != "" {
		h.keep(in, h.gate(in.Topic).Time(in.Time), why, out)
		return nil
	}
	if err := h.pace.wait(ctx); err != nil {
		return err
	}
	h.batch.Sent++
	count(&h.batch.To, back.Topic, 1)
	out.Emit(&back)
	return nil
}

// stays returns why a letter is not sent back, or "". back is the letter as its
// source topic would receive it. A pending letter is marked as seen.
func (h *redriveHandler) stays(in, back *pipeline.Record) string {
	place := letterPlace{in.Topic, in.Partition}
	if in.Offset >= h.pending[place].End {
		return staysLater
	}
	if h.seen == nil {
		h.seen = map[letterPlace]int64{}
	}
	h.seen[place] = in.Offset + 1
	letter := deadletter.Parse(in)
	if why := h.filter.stays(&letter); why != "" {
		return why
	}
	switch {
	case h.limit > 0 && h.total.Sent+h.batch.Sent >= h.limit:
		return staysLimit
	}
	switch err := h.gate(back.Topic).Check(back.Size(), back.Key, back.Time); {
	case err == nil:
		return ""
	case pipeline.ReasonOf(err) == pipeline.ReasonTooLarge:
		return staysTooLarge
	}
	return staysRefused
}

// Flush implements [pipeline.Handler].
func (h *redriveHandler) Flush(context.Context, pipeline.Emitter) error { return nil }

// EndBatch implements [pipeline.Handler].
func (h *redriveHandler) EndBatch(committed bool) {
	h.mu.Lock()
	if committed {
		h.total.add(&h.batch)
		if h.done == nil {
			h.done = map[letterPlace]int64{}
		}
		maps.Copy(h.done, h.seen)
	}
	h.mu.Unlock()
	h.batch = redriveCounts{}
	clear(h.seen)
	if h.finished() {
		h.stop()
	}
}

// finished reports whether all pending letters are handled, or the limit is
// reached.
func (h *redriveHandler) finished() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.limit > 0 && h.total.Sent >= h.limit {
		return true
	}
	for place, b := range h.pending {
		if h.done[place] < b.End {
			return false
		}
	}
	return true
}
