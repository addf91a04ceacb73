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

// comparison compares one pipeline's input with its output.
type comparison struct {
	*worker.Worker
	cluster kafka.Description
	pl      *topology.Pipeline
	since   time.Time // zero: all
	memory  int       // bytes
	most    int       // samples

	sources []*topology.Pipeline           // pl, and all others that write to its topics
	inputs  map[string]map[int32]inputSpan // by topic
	outputs map[string]map[int32]kafka.Bounds
	normals map[string]*normal // by name of the schema; nil where all is compared
	seed    maphash.Seed
	lostIn  bool // the source begins later than it did
	lostOut bool // and so does a topic that is written to

	report   verifyReport
	expected []expecting
	index    map[uint64][2]int // by group: where its expected records are
	strays   []stray           // records that match nothing, in the pass at hand
}

// inputSpan is what is read of a partition of a source: what is committed has to
// have come out, what is behind may have.
type inputSpan struct {
	kafka.Bounds
	committed int64
}

// expecting is a record that has to be there.
type expecting struct {
	group, body uint64 // digests: of topic and key, and of what is compared
	offset      int64  // of the event
	found       int64  // where the record is, 1 more than the offset; 0 if nowhere
	partition   int32  // of the event
	foundIn     int32
	source      uint8 // whose it is
	optional    bool  // it may be missing
	first       bool  // it is the first of its event
	dead        bool
}

const expectingBytes = 48

// stray is a record that is on a topic of the pipeline and matches nothing.
type stray struct {
	group uint64
	at    trace.Place
	key   string
	twice int // the expected record, found before, that it is the same as; -1
}

// maxStrays is how many disagreements are enough.
const maxStrays = 10_000

func (c *comparison) run(ctx context.Context) error {
	c.seed = maphash.MakeSeed()
	c.report = verifyReport{Pipeline: c.pl.Name, Ignored: []string{}, Notes: []string{}, Samples: []disagreement{}}
	if err := c.prepare(ctx); err != nil {
		return err
	}
	total := 0
	for _, pl := range c.sources {
		for _, b := range c.inputs[pl.From.Name] {
			total += int(b.End - b.Start)
		}
	}
	passes := max(1, (total*expectingBytes+c.memory-1)/c.memory)
	for most := 16 * passes; ; passes *= 2 { // keys are not alike
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
	r.Conserved = c.lostOut || r.In == r.Out+r.Filtered+r.DeadLetters
	twice := r.Duplicated
	if c.pl.Guarantee == topology.AtLeastOnce {
		twice = 0
		c.note("its guarantee is %s: records that are there twice are no fault", c.pl.Guarantee)
	}
	r.Agrees = r.Missing+r.Extra+twice+r.Different+r.OutOfOrder == 0 && r.Conserved
	return c.explain(ctx)
}

var errMemory = errors.New("some keys have more records than there is memory for: give more with --memory, or compare less with --since")

func (c *comparison) note(format string, args ...any) {
	c.report.Notes = append(c.report.Notes, fmt.Sprintf(format, args...))
}

// prepare finds out what is to be read. The order matters: what is committed
// before the outputs' ends are known has come out before them, and what came out
// before them was read from before the inputs' ends.
func (c *comparison) prepare(ctx context.Context) error {
	if _, ok := c.cluster.Topics[c.pl.From.Name]; !ok {
		return fmt.Errorf("topic %s does not exist", c.pl.From.Name)
	}
	topics := append(c.pl.Writes(), c.pl.DeadLetter)
	c.sources = []*topology.Pipeline{c.pl}
	for _, other := range c.Topology.Pipelines {
		shares := slices.ContainsFunc(other.Writes(), func(t *topology.Topic) bool { return slices.Contains(topics, t) })
		if _, ok := c.cluster.Topics[other.From.Name]; ok && other != c.pl && shares {
			c.sources = append(c.sources, other)
			c.note("pipeline %s writes to a topic of this one: its records may be there", other.Name)
		}
	}
	group := c.cluster.Groups[c.Topology.Group(c.pl)]
	if len(group.Committed[c.pl.From.Name]) == 0 {
		return fmt.Errorf("group %s has committed nothing of %s yet: there is nothing to compare", c.Topology.Group(c.pl), c.pl.From.Name)
	}
	c.outputs = map[string]map[int32]kafka.Bounds{}
	for _, t := range topics {
		if _, ok := c.cluster.Topics[t.Name]; !ok {
			continue // nothing is there
		}
		bounds, err := kafka.TopicBounds(ctx, c.Kafka, t.Name, true)
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
		bounds, err := kafka.TopicBounds(ctx, c.Kafka, pl.From.Name, false)
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
		c.note("the source has lost its beginning: what came of it is not compared, and what stages remembered of it may be missing")
	}
	if c.lostOut {
		c.note("a topic has lost its beginning: records that were there, up to the first of each key that is there now, are not compared, and whether all adds up cannot be told")
	}
	return c.normalize()
}

// normalize finds out which fields cannot be compared.

// digest returns a number for parts, another for other parts.
func (c *comparison) digest(parts ...[]byte) uint64 {
	var h maphash.Hash
	h.SetSeed(c.seed)
	var size [8]byte
	for _, p := range parts {
		binary.LittleEndian.PutUint64(size[:], uint64(len(p)))
		_, _ = h.Write(size[:]) // it never fails
		_, _ = h.Write(p)
	}
	return h.Sum64()
}

// event returns the digests of an event that is written to a topic. Without a
// key there is no order to keep.
func (c *comparison) event(topic string, key []byte, name string, body []byte) (group, digest uint64) {
	digest = c.digest([]byte(name), c.normals[name].of(body))
	if key == nil {
		return c.digest([]byte(topic), binary.LittleEndian.AppendUint64(nil, digest), nil), digest
	}
	return c.digest([]byte(topic), key), digest
}

// letter returns the digests of a dead letter. It is alone in its group.
func (c *comparison) letter(r *pipeline.Record) (group, digest uint64) {
	header := func(name string) []byte { v, _ := r.Header(name); return v }
	return c.digest([]byte(r.Topic), header(deadletter.HeaderPipeline), header(deadletter.HeaderSourceTopic), header(deadletter.HeaderSourcePartition), header(deadletter.HeaderSourceOffset)),
		c.digest(header(deadletter.HeaderStage), header(deadletter.HeaderReason), r.Key, r.Value)
}

// passes compares everything, in several parts of the keys.
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
	slices.SortStableFunc(c.expected, func(a, b expecting) int { return cmp.Compare(a.group, b.group) })
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
			if err := kafka.ReadRange(ctx, c.Kafka, topic, p, c.outputs[topic][p], func(r *pipeline.Record) error { return c.match(ctx, r, part, of) }); err != nil {
				return err
			}
		}
	}
	c.judge()
	return nil
}

// reference runs a pipeline, and expects what comes out.
func (c *comparison) reference(ctx context.Context, pl *topology.Pipeline, source uint8, part, of uint64, counts *chain.Counts) error {
	r := chain.NewRehearsal(c.Worker, pl, c.cluster.Limits())
	for _, p := range slices.Sorted(maps.Keys(c.inputs[pl.From.Name])) {
		span := c.inputs[pl.From.Name][p]
		if err := r.Restore(ctx, c.cluster, p, span.Start); err != nil {
			return err
		}
		err := kafka.ReadRange(ctx, c.Kafka, pl.From.Name, p, span.Bounds, func(in *pipeline.Record) error {
			optional := source > 0 || in.Offset >= span.committed || in.Time.Before(c.since)
			into := counts
			if optional {
				into = &chain.Counts{Dead: map[pipeline.Reason]int{}}
			}
			out, err := r.Run(ctx, in)
			if err != nil {
				return fmt.Errorf("%s/%d@%d: %w", in.Topic, in.Partition, in.Offset, err)
			}
			into.Add(out)
			for i := range out {
				e := expecting{offset: in.Offset, partition: in.Partition, source: source, optional: optional, first: i == 0}
				if e.dead = out[i].Schema == nil; e.dead {
					e.group, e.body = c.letter(&out[i].Record)
				} else {
					e.group, e.body = c.event(out[i].Record.Topic, out[i].Record.Key, out[i].Schema.Name(), out[i].Body)
				}
				if e.group%of != part {
					continue
				}
				if len(c.expected)*expectingBytes >= c.memory {
					return errMemory
				}
				c.expected = append(c.expected, e)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// match finds out which expected record one is.
func (c *comparison) match(ctx context.Context, r *pipeline.Record, part, of uint64) error {
	var group, body uint64
	if slices.ContainsFunc(c.sources, func(pl *topology.Pipeline) bool { return pl.DeadLetter.Name == r.Topic }) {
		if owner, _ := r.Header(deadletter.HeaderPipeline); string(owner) != c.pl.Name {
			return nil // somebody else's
		}
		group, body = c.letter(r)
	} else {
		name, content := "", r.Value
		if ref, rest, err := codec.Unframe(r); err == nil {
			s, err := c.Registry.Schema(ctx, ref)
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
	twice := -1
	if at, ok := c.index[group]; ok {
		for i := at[0]; i < at[1]; i++ {
			e := &c.expected[i]
			if e.body != body {
				continue
			}
			if e.found == 0 {
				e.found, e.foundIn = r.Offset+1, r.Partition
				return nil
			}
			twice = i
		}
	}
	if r.Time.Before(c.since) {
		return nil
	}
	if len(c.strays) >= maxStrays {
		return fmt.Errorf("more than %d records match nothing: is this the topology that wrote them?", maxStrays)
	}
	c.strays = append(c.strays, stray{group, trace.Place{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset}, string(r.Key), twice})
	return nil
}

// judge says what the pass has shown.
func (c *comparison) judge() {
	r := &c.report
	strays := map[uint64][]stray{}
	for _, s := range c.strays {
		strays[s.group] = append(strays[s.group], s)
	}
	for _, group := range c.groups() {
		at := c.index[group]
		all := c.expected[at[0]:at[1]]
		firstFound := map[int32]int64{} // by partition of the output
		var wanting []int
		last := map[[2]int32]int64{} // by partitions of source and output: where the last one was found
		begun := !c.lostOut
		for i := range all {
			e := &all[i]
			if begun = begun || e.found > 0; !begun {
				continue
			}
			if e.source == 0 && !e.optional {
				r.Expected++
			}
			if e.found == 0 {
				if !e.optional {
					wanting = append(wanting, i)
				}
				continue
			}
			if first, ok := firstFound[e.foundIn]; !ok || e.found-1 < first {
				firstFound[e.foundIn] = e.found - 1
			}
			lane := [2]int32{e.partition, e.foundIn}
			if e.found < last[lane] && e.source == 0 {
				r.OutOfOrder++
				c.show(disagreement{Kind: "out of order", wanted: e, Found: &trace.Place{Partition: e.foundIn, Offset: e.found - 1}})
			}
			last[lane] = max(last[lane], e.found)
			if e.source > 0 || e.optional {
				continue
			}
			r.Matched++
			switch {
			case e.dead:
				r.DeadLetters++
			case e.first:
				r.Out++
			}
		}
		var over []stray
		for _, s := range strays[group] {
			first, found := firstFound[s.at.Partition]
			switch {
			case s.twice >= 0:
				r.Duplicated++
				c.show(disagreement{Kind: "twice", Topic: s.at.Topic, Key: s.key, wanted: &c.expected[s.twice], Found: &s.at})
			case c.lostIn && (!found || s.at.Offset < first):
			default:
				over = append(over, s)
			}
		}
		for i, n := range wanting {
			d := disagreement{Kind: "missing", wanted: &all[n]}
			if i < len(over) {
				d.Kind, d.Topic, d.Key, d.Found = "different", over[i].at.Topic, over[i].key, &over[i].at
				r.Different++
				switch { // it is there, if not as it has to be
				case all[n].dead:
					r.DeadLetters++
				case all[n].first:
					r.Out++
				}
			} else {
				r.Missing++
			}
			c.show(d)
		}
		for _, s := range over[min(len(wanting), len(over)):] {
			r.Extra++
			c.show(disagreement{Kind: "too many", Topic: s.at.Topic, Key: s.key, Found: &s.at})
		}
		delete(strays, group)
	}
	for _, s := range c.strays {
		if _, alone := strays[s.group]; alone && !c.lostIn {
			r.Extra++
			c.show(disagreement{Kind: "too many", Topic: s.at.Topic, Key: s.key, Found: &s.at})
		}
	}
}

// groups returns the groups of expected records, in order.
func (c *comparison) groups() (out []uint64) {
	for i := range c.expected {
		if i == 0 || c.expected[i].group != c.expected[i-1].group {
			out = append(out, c.expected[i].group)
		}
	}
	return out
}

func (c *comparison) show(d disagreement) {
	if len(c.report.Samples) >= c.most {
		return
	}
	if d.wanted != nil {
		e := *d.wanted // what it points to is of this pass
		d.wanted, d.In = &e, &trace.Place{Topic: c.sources[e.source].From.Name, Partition: e.partition, Offset: e.offset}
	}
	c.report.Samples = append(c.report.Samples, d)
}
