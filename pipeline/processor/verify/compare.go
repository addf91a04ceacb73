package verify

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/processor/trace"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// A comparison compares the input of one pipeline with its output.
//
// Its memory holds only digests of records. A group is the records with one topic and
// key, whose order counts; a pass handles the groups whose digest has one remainder.
type comparison struct {
	worker  *worker.Worker
	cluster kafka.Description
	pl      *topology.Pipeline
	since   time.Time // older events and records are not compared; zero for none
	memory  int       // limit for expected, in bytes
	most    int       // maximum number of samples

	services bool // call the services of stages

	// Set by prepare.
	sources []*topology.Pipeline              // pl, then the other pipelines that write to its topics
	inputs  map[string]map[int32]inputSpan    // by topic and partition
	outputs map[string]map[int32]kafka.Bounds // by topic and partition
	normals map[string]*normal                // by name of the schema; nil if all fields are compared
	redrive []map[eventPlace]bool             // by index in sources: the events that were sent back
	seed    maphash.Seed                      // of all digests
	lostIn  bool                              // a source lost its oldest events
	lostOut bool                              // an output topic lost its oldest records
	guessed bool                              // what a service answered decides which records are written

	report verifyReport

	// Of the current pass.
	expected []expectedRecord  // sorted by group, after the reference runs
	index    map[uint64][2]int // start and end in expected, by group
	strays   []stray           // records that match no expected record
}

// An inputSpan is the part of a source partition that is read. The output of events
// before committed must exist, and that of later ones can.
type inputSpan struct {
	bounds    kafka.Bounds
	committed int64
}

// An expectedRecord is a record that the pipeline has to write.
type expectedRecord struct {
	group, body uint64 // digests of topic and key, and of the compared content
	offset      int64  // of the event
	found       int64  // offset of the found record plus 1; 0 if not found
	partition   int32  // of the event
	foundIn     int32  // partition of the found record
	source      uint8  // index in sources of the pipeline that writes it
	optional    bool   // it may be missing
	first       bool   // the first record of its event
	dead        bool   // a dead letter
	redriven    bool   // a dead letter whose cause is not known: any letter of the event matches
	copied      bool   // only a copy of the letter was found so far
}

// An eventPlace is the place of an event in the source of a pipeline.
type eventPlace struct {
	partition int32
	offset    int64
}

// expectedBytes is the size of an expectedRecord.
const expectedBytes = 48

// A stray is an output record that matches no expected record, or only one that
// another record already matched.
type stray struct {
	group       uint64
	at          trace.Place
	key         string
	duplicateOf int // index of that expected record; -1 if there is none
}

// maxStrays is the number of strays in a pass at which the comparison gives up.
const maxStrays = 10_000

// run compares everything and fills the report.
func (c *comparison) run(ctx context.Context) error {
	c.seed = maphash.MakeSeed()
	c.report = verifyReport{Pipeline: c.pl.Name, Ignored: []string{}, Notes: []string{}, Samples: []disagreement{}}
	if err := c.prepare(ctx); err != nil {
		return err
	}
	total := 0
	for _, pl := range c.sources {
		for _, b := range c.inputs[pl.From.Name] {
			total += int(b.bounds.End - b.bounds.Start)
		}
	}
	passes := max(1, (total*expectedBytes+c.memory-1)/c.memory)
	for most := 16 * passes; ; passes *= 2 { // a pass can be larger than the average, because keys differ in size
		err := c.passes(ctx, passes)
		if err == nil {
			break
		}
		if !errors.Is(err, errMemory) || passes >= most {
			return err
		}
	}
	r := &c.report
	r.Passes = passes
	r.Conserved = c.lostOut || r.In == r.Out+r.Filtered+r.DeadLetters+r.Services
	if r.Services > 0 {
		c.note("events that reached a stage http: %d. Their services were not called, so what was written for them is accepted, and nothing has to be there; --call-services compares it", r.Services)
	}
	twice := r.Duplicated
	if c.pl.Guarantee == topology.AtLeastOnce {
		twice = 0
		c.note("the guarantee is %s: duplicated records are not faults", c.pl.Guarantee)
	}
	r.Agrees = r.Missing+r.Extra+twice+r.Different+r.OutOfOrder == 0 && r.Conserved
	return c.explain(ctx)
}

var errMemory = errors.New("the records of some keys do not fit into memory: increase --memory, or compare less with --since")

func (c *comparison) note(format string, args ...any) {
	c.report.Notes = append(c.report.Notes, fmt.Sprintf(format, args...))
}

// prepare determines what to read. The order matters. The committed offsets in cluster
// are older than the output ends, so the output of committed events is before these.
// The input ends come last, so the events of all output before the output ends are
// before these.
func (c *comparison) prepare(ctx context.Context) error {
	if _, ok := c.cluster.Topics[c.pl.From.Name]; !ok {
		return fmt.Errorf("topic %s does not exist", c.pl.From.Name)
	}
	topics := append(c.pl.Writes(), c.pl.DeadLetter)
	c.sources = []*topology.Pipeline{c.pl}
	for _, other := range c.worker.Topology.Pipelines {
		shares := slices.ContainsFunc(other.Writes(), func(t *topology.Topic) bool { return slices.Contains(topics, t) })
		if _, ok := c.cluster.Topics[other.From.Name]; ok && other != c.pl && shares {
			c.sources = append(c.sources, other)
			c.note("pipeline %s writes to a topic of this one: its records are accepted there", other.Name)
		}
	}
	group := c.cluster.Groups[c.worker.Topology.Group(c.pl)]
	if len(group.Committed[c.pl.From.Name]) == 0 {
		return fmt.Errorf("group %s has committed nothing of %s yet: there is nothing to compare", c.worker.Topology.Group(c.pl), c.pl.From.Name)
	}
	c.outputs = map[string]map[int32]kafka.Bounds{}
	for _, t := range topics {
		if _, ok := c.cluster.Topics[t.Name]; !ok {
			continue // no worker has created the topic yet
		}
		bounds, err := kafka.TopicBounds(ctx, c.worker.Kafka, t.Name, true)
		if err != nil {
			return err
		}
		c.outputs[t.Name] = bounds
		for _, b := range bounds {
			c.lostOut = c.lostOut || b.Start > 0
		}
	}
	c.inputs = map[string]map[int32]inputSpan{}
	for _, pl := range c.sources {
		bounds, err := kafka.TopicBounds(ctx, c.worker.Kafka, pl.From.Name, false)
		if err != nil {
			return err
		}
		c.inputs[pl.From.Name] = map[int32]inputSpan{}
		for p, b := range bounds {
			c.inputs[pl.From.Name][p] = inputSpan{b, group.Committed[pl.From.Name][p]}
			if b.Start > 0 {
				c.lostIn = true
			}
		}
	}
	if c.lostIn {
		c.note("a source lost its oldest events: their output is not compared, and the state of stages may lack them")
	}
	if c.lostOut {
		c.note("an output topic lost its oldest records: of each key, expected records before the first one that still exists are not compared, and in = out + filtered + dead letters cannot be checked")
	}
	for _, pl := range c.sources {
		redriven, err := c.findRedriven(ctx, pl)
		if err != nil {
			return err
		}
		c.redrive = append(c.redrive, redriven)
	}
	if n := len(c.redrive[0]); n > 0 {
		c.note("dead letters that were sent back: %d. The outcome of the first attempt is the dead letter, whatever the stages decide now", n)
	}
	return c.normalize()
}

// findRedriven returns the events of a pipeline that became dead letters and were sent
// back, which their copies in the source name.
func (c *comparison) findRedriven(ctx context.Context, pl *topology.Pipeline) (map[eventPlace]bool, error) {
	out := map[eventPlace]bool{}
	written := false
	for _, b := range c.outputs[pl.DeadLetter.Name] {
		written = written || b.End > 0
	}
	if !written {
		return out, nil
	}
	for p, span := range c.inputs[pl.From.Name] {
		err := kafka.ReadRange(ctx, c.worker.Kafka, pl.From.Name, p, span.bounds, func(in *pipeline.Record) error {
			// A letter of an earlier topic names a place that has another event now.
			if string(deadletter.RedrivenTo(in)) == pl.Name && deadletter.IsTaken(in, c.cluster.Topics[pl.From.Name].ID) {
				if partition, offset, ok := deadletter.RedrivenFrom(in); ok {
					out[eventPlace{partition, offset}] = true
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// digest returns the hash of parts. Their lengths are part of it, so other parts with
// the same concatenation have another hash.
func (c *comparison) digest(parts ...[]byte) uint64 {
	var h maphash.Hash
	h.SetSeed(c.seed)
	var size [8]byte
	for _, p := range parts {
		binary.LittleEndian.PutUint64(size[:], uint64(len(p)))
		_, _ = h.Write(size[:]) // never fails
		_, _ = h.Write(p)
	}
	return h.Sum64()
}

// event returns the digests of an output event. Without a key there is no order to
// keep, so equal events are a group of their own.
func (c *comparison) event(topic string, key []byte, name string, body []byte) (group, digest uint64) {
	digest = c.digest([]byte(name), c.normals[name].of(body))
	if key == nil {
		return c.digest([]byte(topic), binary.LittleEndian.AppendUint64(nil, digest), nil), digest
	}
	return c.digest([]byte(topic), key), digest
}

// letter returns the digests of a dead letter. The dead letter of each event is a
// group of its own.
func (c *comparison) letter(r *pipeline.Record) (group, digest uint64) {
	l := deadletter.Parse(r)
	return c.letterGroup(r.Topic, l.Pipeline, l.SourceTopic, eventPlace{l.SourcePartition, l.SourceOffset}),
		c.digest([]byte(l.Stage), []byte(l.Reason), r.Key, r.Value)
}

// letterGroup returns the group of the dead letter of an event.
func (c *comparison) letterGroup(topic, by, source string, at eventPlace) uint64 {
	return c.digest([]byte(topic), []byte(by), []byte(source), fmt.Append(nil, at.partition), fmt.Append(nil, at.offset))
}

// passes compares everything in n passes, each over a part of the keys. After an error
// the report is unchanged.
func (c *comparison) passes(ctx context.Context, n int) error {
	kept := c.report
	for i := range n {
		if err := c.pass(ctx, uint64(i), uint64(n)); err != nil {
			c.report = kept
			return err
		}
	}
	return nil
}

// pass compares the groups whose digest modulo of is part.
func (c *comparison) pass(ctx context.Context, part, of uint64) error {
	c.expected, c.strays = c.expected[:0], nil
	counts := chain.Counts{Dead: map[pipeline.Reason]int{}}
	for i, pl := range c.sources {
		if err := c.reference(ctx, pl, uint8(i), part, of, &counts); err != nil {
			return err
		}
	}
	if part == 0 {
		c.report.In, c.report.Filtered = counts.In, counts.Filtered
	}
	slices.SortStableFunc(c.expected, func(a, b expectedRecord) int { return cmp.Compare(a.group, b.group) })
	c.index = map[uint64][2]int{}
	for i := 0; i < len(c.expected); {
		j := i
		for j < len(c.expected) && c.expected[j].group == c.expected[i].group {
			j++
		}
		c.index[c.expected[i].group] = [2]int{i, j}
		i = j
	}
	for _, topic := range slices.Sorted(maps.Keys(c.outputs)) {
		for _, p := range slices.Sorted(maps.Keys(c.outputs[topic])) {
			if err := kafka.ReadRange(ctx, c.worker.Kafka, topic, p, c.outputs[topic][p], func(r *pipeline.Record) error { return c.match(ctx, r, part, of) }); err != nil {
				return err
			}
		}
	}
	c.judge()
	return nil
}

// reference runs the input of a pipeline through its stages and adds the output to
// expected. Everything is optional for another source than the first. counts gets the
// counts of the events that are not optional.
func (c *comparison) reference(ctx context.Context, pl *topology.Pipeline, source uint8, part, of uint64, counts *chain.Counts) error {
	r := c.rehearsal(pl)
	for _, p := range slices.Sorted(maps.Keys(c.inputs[pl.From.Name])) {
		span := c.inputs[pl.From.Name][p]
		if err := r.Restore(ctx, c.cluster, p, span.bounds.Start); err != nil {
			return err
		}
		err := kafka.ReadRange(ctx, c.worker.Kafka, pl.From.Name, p, span.bounds, func(in *pipeline.Record) error {
			optional := source > 0 || in.Offset >= span.committed || in.Time.Before(c.since)
			into := counts
			if optional {
				into = &chain.Counts{Dead: map[pipeline.Reason]int{}}
			}
			first := expectedRecord{offset: in.Offset, partition: in.Partition, source: source, optional: optional, first: true}
			return c.expect(ctx, pl, r, in, first, part, of, into)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// keyText returns the text form of the key of an output record.
func (c *comparison) keyText(r *pipeline.Record) string {
	if t := c.worker.Topology.Topic(r.Topic); t != nil {
		return t.KeyFormat.Show(r.Key)
	}
	return string(r.Key)
}

// rehearsal returns a rehearsal of a pipeline.
func (c *comparison) rehearsal(pl *topology.Pipeline) *chain.Rehearsal {
	r := chain.NewRehearsal(c.worker, pl, c.cluster)
	if !c.services {
		r.SpareServices()
	}
	return r
}

// expect adds the records that a pipeline has to write for an event. first is the first
// of them, without its digests.
func (c *comparison) expect(ctx context.Context, pl *topology.Pipeline, r *chain.Rehearsal, in *pipeline.Record, first expectedRecord, part, of uint64, counts *chain.Counts) error {
	if r.Skips(in) {
		return nil
	}
	if at := (eventPlace{in.Partition, in.Offset}); c.redrive[first.source][at] {
		counts.In++
		first.dead, first.redriven = true, true
		first.group = c.letterGroup(pl.DeadLetter.Name, pl.Name, pl.From.Name, at)
		return c.addExpected(first, part, of)
	}
	out, err := r.Run(ctx, in)
	switch {
	case r.Spared():
		// Whatever a worker wrote for the event is accepted: a record, a dead letter of
		// any stage, or nothing.
		if !first.optional && part == 0 {
			c.report.Services++
		}
		counts.In++
		first.optional = true
		letter := first
		letter.dead, letter.redriven = true, true
		letter.group = c.letterGroup(pl.DeadLetter.Name, pl.Name, pl.From.Name, eventPlace{in.Partition, in.Offset})
		if err := c.addExpected(letter, part, of); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("%s/%d@%d: %w", in.Topic, in.Partition, in.Offset, err)
	default:
		counts.Add(out)
	}
	for i := range out {
		e := first
		e.first = i == 0
		if e.dead = out[i].DeadLetter(); e.dead {
			if r.Spared() {
				continue // it is expected already
			}
			e.group, e.body = c.letter(&out[i].Record)
		} else {
			e.group, e.body = c.event(out[i].Record.Topic, out[i].Record.Key, out[i].Type(), out[i].Body)
		}
		if err := c.addExpected(e, part, of); err != nil {
			return err
		}
	}
	return nil
}

// addExpected adds an expected record if it is of this pass.
func (c *comparison) addExpected(e expectedRecord, part, of uint64) error {
	if e.group%of != part {
		return nil
	}
	if len(c.expected)*expectedBytes >= c.memory {
		return errMemory
	}
	c.expected = append(c.expected, e)
	return nil
}

// match marks the expected record of an output record as found, or adds a stray.
func (c *comparison) match(ctx context.Context, r *pipeline.Record, part, of uint64) error {
	var group, body uint64
	if slices.ContainsFunc(c.sources, func(pl *topology.Pipeline) bool { return pl.DeadLetter.Name == r.Topic }) {
		if deadletter.Parse(r).Pipeline != c.pl.Name {
			return nil // another pipeline's
		}
		group, body = c.letter(r)
	} else {
		name, content := "", r.Value
		if ref, rest, err := codec.Unframe(r); err == nil {
			s, err := c.worker.Registry.Schema(ctx, ref)
			switch {
			case err == nil:
				name, content = s.Name(), rest
			case pipeline.ClassOf(err) != pipeline.ClassReject:
				return err
			}
		}
		group, body = c.event(r.Topic, r.Key, name, content)
	}
	if group%of != part {
		return nil
	}
	duplicateOf := -1
	if at, ok := c.index[group]; ok {
		for i := at[0]; i < at[1]; i++ {
			e := &c.expected[i]
			if e.body != body && !e.redriven {
				continue
			}
			copied := e.dead && deadletter.IsCopy(r)
			switch {
			case e.found == 0 || e.copied && !copied:
				e.found, e.foundIn, e.copied = r.Offset+1, r.Partition, copied
				return nil
			case copied: // a redrive left the letter where it was, and wrote it again
				return nil
			}
			duplicateOf = i
		}
	}
	if r.Time.Before(c.since) {
		return nil
	}
	if len(c.strays) >= maxStrays {
		return fmt.Errorf("more than %d output records match no event: check that this topology wrote them", maxStrays)
	}
	c.strays = append(c.strays, stray{group, trace.Place{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset}, c.keyText(r), duplicateOf})
	return nil
}
