package client

import (
	"encoding/json"
	"fmt"
	"strings"

	"millrace/pipeline"
)

// statusBlocked is the status of an aggregate with an event that cannot be folded.
const statusBlocked = "blocked"

// The parts of answers that the commands use. See docs/openapi.json.
type (
	// position is the progress of a partition.
	position struct {
		Partition int32    `json:"partition"`
		Offset    int64    `json:"offset"`
		Lag       int64    `json:"lag"`         // offsets
		Seconds   *float64 `json:"lag_seconds"` // nil if unknown
		Unread    []unread `json:"unread"`
	}

	// unread is a range of offsets that were deleted before the projection read them.
	unread struct {
		From int64 `json:"from"`
		To   int64 `json:"to"`
	}

	aggregate struct {
		Projection string            `json:"projection"`
		Partition  int32             `json:"partition"`
		Offset     int64             `json:"offset"`
		Lag        int64             `json:"lag"`
		Seconds    *float64          `json:"lag_seconds"`
		Unread     []unread          `json:"unread"`
		ID         string            `json:"id"`
		Version    int64             `json:"version"`
		Sequence   int64             `json:"sequence"` // 0 if no event had a number
		Deleted    bool              `json:"deleted"`
		Status     string            `json:"status"` // blocked, gap or empty
		EventID    string            `json:"event_id"`
		EventTime  pipeline.Time     `json:"event_time"`
		State      json.RawMessage   `json:"state"`
		Hidden     map[string]string `json:"hidden"` // reason why an encrypted field is null, by path
		Plain      []string          `json:"plain"`  // paths of tagged fields that were never encrypted
	}

	event struct {
		ID         string            `json:"id"`
		Type       string            `json:"type"`
		Time       pipeline.Time     `json:"time"`
		Projection string            `json:"projection"`
		Aggregate  string            `json:"aggregate"`
		Version    int64             `json:"version"`
		Topic      string            `json:"topic"`
		Partition  int32             `json:"partition"`
		Offset     int64             `json:"offset"`
		Event      json.RawMessage   `json:"event"`
		Hidden     map[string]string `json:"hidden"`
		Plain      []string          `json:"plain"`
	}
)

func (p position) String() string {
	text := fmt.Sprintf("partition %d folded up to offset %d, lag %d", p.Partition, p.Offset, p.Lag)
	if p.Lag > 0 && p.Seconds != nil {
		text += fmt.Sprintf(" (%.1f s)", *p.Seconds)
	}
	if gap := p.gap(); gap != "" {
		text += "; " + gap
	}
	return text
}

// gap says which events the states of the partition lack; "" if none.
func (p position) gap() string {
	if len(p.Unread) == 0 {
		return ""
	}
	var ranges []string
	for _, r := range p.Unread {
		ranges = append(ranges, fmt.Sprintf("%d to %d", r.From, r.To-1))
	}
	return "it lacks offsets " + strings.Join(ranges, ", ") + ", which the topic had deleted before they were read"
}

// mark returns the status of an aggregate for a line about it, "" if it is live.
func (g *aggregate) mark() string {
	if g.Deleted {
		return "deleted"
	}
	return g.Status
}

// position returns the progress of the aggregate's partition.
func (g *aggregate) position() position {
	return position{g.Partition, g.Offset, g.Lag, g.Seconds, g.Unread}
}

// data returns the content of an event: its field data if it has the usual envelope, else
// the whole event.
func (ev *event) data() string {
	var envelope struct {
		Data json.RawMessage `json:"data"`
	}
	if json.Unmarshal(ev.Event, &envelope) == nil && envelope.Data != nil {
		return plainJSON(envelope.Data)
	}
	return plainJSON(ev.Event)
}
