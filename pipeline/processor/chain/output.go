package chain

import (
	"fmt"
	"slices"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyformat"
	"millrace/pipeline/rows"
	"millrace/pipeline/topology"
)

// output encodes the events that leave the chain. It belongs to a handler.
type output struct {
	to       *target            // the topic of events that no stage routed
	targets  map[string]*target // by topic
	open     []*codec.Schema    // by type: the schema if it is open; nil if none is
	headers  *event.OutputHeaders
	carrier  event.Carrier
	envelope *event.Envelope // of the input
	memory   memory
	records  []pipeline.Record // of the current event
}

// target is a topic that a pipeline writes.
type target struct {
	topic string
	ids   []int // schema ids, by type
	keys  keyformat.Format
	gate  *kafka.Gate
}

// maxNewKey is the size of most keys that are converted from their text form.
const maxNewKey = 16

func newOutput(pl *topology.Pipeline, ids map[string][]int, envelope *event.Envelope) output {
	o := output{
		to:       &target{topic: pl.To.Name, ids: ids[pl.To.Name], keys: pl.To.KeyFormat},
		targets:  map[string]*target{},
		open:     openSchemas(pl.Output),
		headers:  event.NewOutputHeaders(pl),
		envelope: envelope,
		memory:   memory{arena: &rows.Arena{}},
	}
	for _, topic := range pl.Writes() {
		o.targets[topic.Name] = &target{topic: topic.Name, ids: ids[topic.Name], keys: topic.KeyFormat}
	}
	o.targets[pl.To.Name] = o.to
	return o
}

// openSchemas returns the schemas that are [codec.Schema.Open], at their places; nil if
// there are none.
func openSchemas(all []*codec.Schema) (open []*codec.Schema) {
	for i, s := range all {
		if s.Open() {
			if open == nil {
				open = make([]*codec.Schema, len(all))
			}
			open[i] = s
		}
	}
	return open
}

func (o *output) limit(limits kafka.Limits, now func() time.Time) {
	for _, t := range o.targets {
		t.gate = limits.Gate(t.topic, now)
	}
}

// append adds the records of an event that left the chain.
func (o *output) append(e *pipeline.Event) error {
	key := e.Key
	if e.NewKey != nil {
		// The stages reuse the bytes of NewKey for the next event, but the record needs
		// them until the end of the batch.
		key = o.memory.arena.Keep(append(o.memory.arena.Grow(len(e.NewKey)), e.NewKey...))
	}
	if e.To == nil {
		return o.write(e, o.to, key)
	}
	for _, topic := range e.To {
		if err := o.write(e, o.targets[topic], key); err != nil {
			return err
		}
	}
	return nil
}

// write adds a record for one topic.
func (o *output) write(e *pipeline.Event, t *target, key []byte) error {
	if e.NewKey != nil && !t.keys.IsText() {
		var err error
		if key, err = t.keys.AppendKey(o.memory.arena.Grow(maxNewKey), e.NewKey); err != nil {
			return err
		}
		key = o.memory.arena.Keep(key)
	}
	value := o.memory.arena.Grow(codec.FrameSize + len(e.Body) + len(e.Arena))
	value = o.memory.arena.Keep(e.Append(codec.AppendFrame(value, t.ids[e.Type])))
	if o.open != nil && o.open[e.Type] != nil {
		if err := o.open[e.Type].CheckWritten(value[codec.FrameSize:]); err != nil {
			return fmt.Errorf("after the last stage: %w", err)
		}
	}
	headers := e.Headers
	if len(headers) > 0 {
		headers = o.carrier.Carried(headers, e.NewKey != nil)
	}
	if o.headers != nil {
		text := e.KeyText
		if e.NewKey != nil {
			text = e.NewKey
		}
		var err error
		if headers, err = o.headers.For(e, headers, t.topic, text, o.envelope); err != nil {
			return err
		}
	}
	if err := t.gate.Check(len(key)+len(value)+pipeline.HeadersSize(headers), key, e.Time); err != nil {
		return err
	}
	n := len(o.records)
	o.records = slices.Grow(o.records, 1)[:n+1]
	r := &o.records[n] // may hold an old record: set all fields except the offset
	r.Topic, r.Partition, r.Key, r.Value, r.Headers, r.Time = t.topic, pipeline.KeyPartition, key, value, headers, e.Time
	return nil
}

// memory holds the keys and values of the records that a batch emitted. The batch can be
// sealed into parts, whose memory is reused before the batch ends.
type memory struct {
	arena  *rows.Arena   // of the current part
	sealed []*rows.Arena // of the sealed parts, the oldest first
	spare  []*rows.Arena // empty
}

// seal ends the current part.
func (m *memory) seal() {
	m.sealed = append(m.sealed, m.arena)
	if n := len(m.spare); n > 0 {
		m.arena, m.spare = m.spare[n-1], m.spare[:n-1]
	} else {
		m.arena = &rows.Arena{}
	}
}

// reuse releases the oldest sealed part.
func (m *memory) reuse() {
	m.sealed[0].Reset(rows.ArenaKeepPart)
	m.spare = append(m.spare, m.sealed[0])
	m.sealed = slices.Delete(m.sealed, 0, 1)
}

// reset releases all parts.
func (m *memory) reset() {
	for len(m.sealed) > 0 {
		m.reuse()
	}
	m.arena.Reset(rows.ArenaKeep)
}
