package app

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/kafka"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
)

func verifyCommand(e *Env) *cobra.Command {
	v := &verify{env: e}
	cmd := &cobra.Command{
		Use:   "verify [PIPELINE...]",
		Short: "Compare what pipelines wrote with what they had to write, record by record",
		Long: `Runs the committed events of each pipeline's source once more by the code of
workers, and compares the result with the committed records of its topics: those
that are missing, too many, there twice, different, or out of order within their
key. In = out + filtered + dead letters has to hold. Nothing is written, and the
workers may go on meanwhile: events whose offsets are not committed yet may have
come out or not.

Records are matched by key and by what is in them; no headers are needed but
those of dead letters. Headers and timestamps are not compared, and neither are
fields that follow from now(), from a table or from a service: the report names
them. Of a key that has one record too few and one too many, the two are reported
as one that is different. Where the source has lost its beginning, records before
the first that matches are not reported, and the same holds for lost output.

Every 48 bytes of --memory hold one expected record. If that is too little, input
and output are read several times, each time for another part of the keys. The
records of one key have to fit.

Exit code 0 if all agrees; 1 with the disagreements if not; 2 if the command line
or the topology is wrong.`,
		Example: `  processor verify
  processor verify enrich --since 24h --json`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, names []string) error { return v.run(cmd.Context(), names) },
	}
	flags := cmd.Flags()
	v.remote = e.remoteFlags(flags)
	flags.DurationVar(&v.since, "since", 0, "compare only events that are not older than this `duration`, by their timestamps (default: all)")
	flags.IntVar(&v.memory, "memory", 256, "`MiB` for records that are expected")
	flags.IntVar(&v.samples, "samples", 10, "how many disagreements to show of each pipeline")
	flags.BoolVar(&v.json, "json", false, "print JSON, one object for each pipeline")
	return cmd
}

type verify struct {
	env     *Env
	remote  *remoteFlags
	since   time.Duration
	memory  int // MiB
	samples int
	json    bool
}

func (v *verify) run(ctx context.Context, names []string) error {
	if v.memory < 1 || v.samples < 0 || v.since < 0 {
		return Usagef("--memory has to be at least 1, and --samples and --since not negative")
	}
	w, err := v.remote.open()
	if err != nil {
		return err
	}
	pipelines, err := v.remote.chosen(w, names)
	if err != nil {
		return err
	}
	var topics, groups []string
	for _, t := range w.topology.Topics {
		topics = append(topics, t.Name)
	}
	for _, pl := range w.topology.Pipelines {
		groups = append(groups, groupOf(w.topology, pl))
		for _, s := range stateTopics(w.topology, pl, 0) {
			topics = append(topics, s.Name)
		}
	}
	cluster, err := kafka.Describe(ctx, w.kafka, topics, groups, nil)
	if err != nil {
		return err
	}
	var since time.Time
	if v.since > 0 {
		since = v.env.Now().Add(-v.since)
	}
	agreed := true
	out := printer{w: v.env.Stdout}
	err = w.withTables(ctx, cluster, pipelines, func(ctx context.Context) error {
		for _, pl := range pipelines {
			c := &comparison{worker: w, cluster: cluster, pl: pl, since: since, memory: v.memory << 20, most: v.samples}
			if err := c.run(ctx); err != nil {
				return fmt.Errorf("pipeline %s: %w", pl.Name, err)
			}
			agreed = agreed && c.report.Agrees
			if v.json {
				out.line("%s", compact(c.report))
			} else {
				c.report.print(&out)
			}
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case out.err != nil:
		return out.err
	case !agreed:
		return &ExitError{Code: ExitFailure}
	}
	return nil
}

// verifyReport is what a comparison found.
type verifyReport struct {
	Pipeline  string `json:"pipeline"`
	Agrees    bool   `json:"agrees"`
	Conserved bool   `json:"conserved"` // in = out + filtered + dead letters

	In          int `json:"in"`           // events that are committed
	Out         int `json:"out"`          // of which something was written
	Filtered    int `json:"filtered"`     // of which nothing had to be
	DeadLetters int `json:"dead_letters"` // that are there, by the place of their events

	Expected   int `json:"expected"` // records, dead letters included
	Matched    int `json:"matched"`
	Missing    int `json:"missing"`
	Extra      int `json:"extra"`
	Duplicated int `json:"duplicated"`
	Different  int `json:"different"`
	OutOfOrder int `json:"out_of_order"`

	Passes  int            `json:"passes"` // over input and output
	Ignored []string       `json:"ignored"`
	Notes   []string       `json:"notes"`
	Samples []disagreement `json:"samples"`
}

// disagreement is one that is shown. In is the event, Found the record.
type disagreement struct {
	Kind   string     `json:"kind"`
	Topic  string     `json:"topic"`
	Key    string     `json:"key"`
	In     *place     `json:"in,omitempty"`
	Found  *place     `json:"found,omitempty"`
	Text   []string   `json:"text,omitempty"`
	wanted *expecting // what was to be there
}

type place struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

func (p *place) String() string { return fmt.Sprintf("%s/%d@%d", p.Topic, p.Partition, p.Offset) }

func (r *verifyReport) print(p *printer) {
	p.line("pipeline %s", r.Pipeline)
	p.line("  %s in = %d out + %d filtered + %s%s", plural(r.In, "event"), r.Out, r.Filtered, plural(r.DeadLetters, "dead letter"), map[bool]string{false: ": these do not add up"}[r.Conserved])
	p.line("  %s expected, %d found as they have to be", plural(r.Expected, "record"), r.Matched)
	for _, line := range []struct {
		n    int
		what string
	}{{r.Missing, "missing"}, {r.Extra, "too many"}, {r.Duplicated, "there twice"}, {r.Different, "different"}, {r.OutOfOrder, "out of order"}} {
		if line.n > 0 {
			p.line("  %d %s", line.n, line.what)
		}
	}
	if len(r.Ignored) > 0 {
		p.item("  not compared:", 16, strings.Join(r.Ignored, ", "))
	}
	for _, note := range r.Notes {
		p.item("  note:", 16, note)
	}
	for _, d := range r.Samples {
		text := fmt.Sprintf("  %s on %s, key %s", d.Kind, d.Topic, quoted(d.Key))
		if d.In != nil {
			text += ", of the event " + d.In.String()
		}
		if d.Found != nil {
			text += ", at " + d.Found.String()
		}
		p.line("%s", text)
		for _, line := range d.Text {
			p.line("    %s", line)
		}
	}
	if r.Agrees {
		p.line("  all agrees")
	} else {
		p.line("  it does NOT agree")
	}
}

// comparison compares one pipeline's input with its output.
type comparison struct {
	*worker
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
	at    place
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
	for _, other := range c.topology.Pipelines {
		shares := slices.ContainsFunc(other.Writes(), func(t *topology.Topic) bool { return slices.Contains(topics, t) })
		if _, ok := c.cluster.Topics[other.From.Name]; ok && other != c.pl && shares {
			c.sources = append(c.sources, other)
			c.note("pipeline %s writes to a topic of this one: its records may be there", other.Name)
		}
	}
	group := c.cluster.Groups[groupOf(c.topology, c.pl)]
	if len(group.Committed[c.pl.From.Name]) == 0 {
		return fmt.Errorf("group %s has committed nothing of %s yet: there is nothing to compare", groupOf(c.topology, c.pl), c.pl.From.Name)
	}
	c.outputs = map[string]map[int32]kafka.Bounds{}
	for _, t := range topics {
		if _, ok := c.cluster.Topics[t.Name]; !ok {
			continue // nothing is there
		}
		bounds, err := kafka.TopicBounds(ctx, c.kafka, t.Name, true)
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
		bounds, err := kafka.TopicBounds(ctx, c.kafka, pl.From.Name, false)
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
func (c *comparison) normalize() error {
	fields := map[string][][]string{}
	schemas := map[string]*codec.Schema{}
	ignored, fates := map[string]bool{}, map[string]bool{}
	for _, pl := range c.sources {
		for typ, s := range pl.Output {
			if !pl.Emits[typ] {
				continue
			}
			schemas[s.Name()] = s
			volatile, deciding := volatileFields(pl, typ)
			fields[s.Name()] = append(fields[s.Name()], volatile...)
			for _, path := range volatile {
				ignored[shortName(s)+"."+strings.Join(path, ".")] = true
			}
			for _, name := range deciding {
				if pl == c.pl {
					fates[name] = true
				}
			}
		}
	}
	c.report.Ignored = append(c.report.Ignored, sortedKeys(ignored)...)
	for _, name := range sortedKeys(fates) {
		c.note("stage %s decides by now(), by a table or by a service, which was another answer then: what it did to an event may differ from this run", name)
	}
	c.normals = map[string]*normal{}
	for name, paths := range fields {
		if len(paths) == 0 {
			continue
		}
		n, err := newNormal(schemas[name], paths)
		if err != nil {
			return err
		}
		c.normals[name] = n
	}
	return nil
}

// volatileFields returns the fields of events of a type that may come out
// otherwise each time, and the stages that may decide otherwise: by what they
// ask themselves, or by what an earlier one set.
func volatileFields(pl *topology.Pipeline, typ int) (fields [][]string, deciding []string) {
	for _, s := range pl.Stages {
		if !s.On[typ] {
			continue
		}
		own, fate := stage.Volatile(s.Built, typ)
		if slices.ContainsFunc(s.Built.Reads(typ), func(read []string) bool {
			return slices.ContainsFunc(fields, func(f []string) bool { return overlap(read, f) })
		}) {
			writes := s.Built.Writes(typ)
			own = append(own, writes...)
			fate = fate || len(writes) == 0
		}
		fields = append(fields, own...)
		if fate {
			deciding = append(deciding, s.Name)
		}
	}
	return fields, deciding
}

// overlap reports whether one path leads to a part of the other.
func overlap(a, b []string) bool {
	n := min(len(a), len(b))
	return slices.Equal(a[:n], b[:n])
}

// normal takes fields out of bodies.
type normal struct {
	layout *codec.Layout
	leaves []normalLeaf

	view pipeline.View
	buf  []byte
}

type normalLeaf struct {
	path []string
	node *codec.Node
	keys []expr.Entry // of a map, what is taken out; nil: the whole leaf
}

func newNormal(s *codec.Schema, fields [][]string) (*normal, error) {
	n := &normal{}
	var paths [][]string
	for _, field := range fields {
		node, i := s.Root(), 0
		for ; node.Kind == codec.Record && i < len(field); i++ {
			f := node.Field(field[i])
			if f == nil {
				return nil, fmt.Errorf("%s has no %s", s.Name(), strings.Join(field, "."))
			}
			node = f.Type
		}
		at := slices.IndexFunc(n.leaves, func(l normalLeaf) bool { return slices.Equal(l.path, field[:i]) })
		if at < 0 {
			at = len(n.leaves)
			n.leaves = append(n.leaves, normalLeaf{path: field[:i], node: node, keys: []expr.Entry{}})
			paths = append(paths, field[:i])
		}
		leaf := &n.leaves[at]
		switch {
		case leaf.keys == nil:
		case i == len(field) || node.Kind != codec.Map:
			leaf.keys = nil
		case !slices.ContainsFunc(leaf.keys, func(e expr.Entry) bool { return string(e.Key) == field[i] }):
			leaf.keys = append(leaf.keys, expr.Entry{Key: []byte(field[i]), Value: []byte{}})
		}
	}
	var err error
	n.layout, err = codec.NewLayout(s, paths)
	return n, err
}

// of returns the body without the fields: no Avro any more, but equal for bodies
// that differ in nothing else. What has another form comes back as it is.
func (n *normal) of(body []byte) []byte {
	if n == nil {
		return body
	}
	if err := n.layout.Walk(body, &n.view); err != nil {
		return body
	}
	for _, leaf := range n.leaves {
		slot := n.layout.Slot(leaf.path...)
		if leaf.keys == nil {
			n.view.Set(slot, nil)
			continue
		}
		rest, err := expr.AppendMap(nil, leaf.node, n.view.Get(slot), leaf.keys)
		if err != nil {
			return body
		}
		n.view.Set(slot, rest)
	}
	n.buf = n.view.Append(n.buf[:0])
	return n.buf
}

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
	return c.digest([]byte(r.Topic), header(headerPipeline), header(headerSourceTopic), header(headerSourcePartition), header(headerSourceOffset)),
		c.digest(header(headerStage), header(headerReason), r.Key, r.Value)
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
	counts := chainCounts{dead: map[pipeline.Reason]int{}}
	for i, pl := range c.sources {
		if err := c.reference(ctx, pl, uint8(i), part, of, &counts); err != nil {
			return err
		}
	}
	if part == 0 {
		c.report.In, c.report.Filtered = counts.in, counts.filtered
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
	for _, topic := range sortedKeys(c.outputs) {
		for _, p := range slices.Sorted(maps.Keys(c.outputs[topic])) {
			if err := kafka.ReadRange(ctx, c.kafka, topic, p, c.outputs[topic][p], func(r *pipeline.Record) error { return c.match(ctx, r, part, of) }); err != nil {
				return err
			}
		}
	}
	c.judge()
	return nil
}

// reference runs a pipeline, and expects what comes out.
func (c *comparison) reference(ctx context.Context, pl *topology.Pipeline, source uint8, part, of uint64, counts *chainCounts) error {
	r := c.rehearse(pl, c.cluster.Limits())
	for _, p := range slices.Sorted(maps.Keys(c.inputs[pl.From.Name])) {
		span := c.inputs[pl.From.Name][p]
		if err := r.assign(ctx, c.cluster, p, span.Start); err != nil {
			return err
		}
		err := kafka.ReadRange(ctx, c.kafka, pl.From.Name, p, span.Bounds, func(in *pipeline.Record) error {
			optional := source > 0 || in.Offset >= span.committed || in.Time.Before(c.since)
			into := counts
			if optional {
				into = &chainCounts{dead: map[pipeline.Reason]int{}}
			}
			out, err := r.handle(ctx, in, into)
			if err != nil {
				return fmt.Errorf("%s/%d@%d: %w", in.Topic, in.Partition, in.Offset, err)
			}
			for i := range out {
				e := expecting{offset: in.Offset, partition: in.Partition, source: source, optional: optional, first: i == 0}
				if e.dead = out[i].Topic == pl.DeadLetter.Name; e.dead {
					e.group, e.body = c.letter(&out[i])
				} else {
					typ, body := r.typeOf(&out[i])
					e.group, e.body = c.event(out[i].Topic, out[i].Key, pl.Output[typ].Name(), body)
				}
				if e.group%of != part {
					continue
				}
				if len(c.expected)*expectingBytes >= c.memory {
					return errMemory
				}
				c.expected = append(c.expected, e)
			}
			r.next()
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
		if owner, _ := r.Header(headerPipeline); string(owner) != c.pl.Name {
			return nil // somebody else's
		}
		group, body = c.letter(r)
	} else {
		name, content := "", r.Value
		if ref, rest, err := codec.Unframe(r); err == nil {
			s, err := c.registry.Schema(ctx, ref)
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
	c.strays = append(c.strays, stray{group, place{r.Topic, r.Partition, r.Offset}, string(r.Key), twice})
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
				c.show(disagreement{Kind: "out of order", wanted: e, Found: &place{"", e.foundIn, e.found - 1}})
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
		d.wanted, d.In = &e, &place{c.sources[e.source].From.Name, e.partition, e.offset}
	}
	c.report.Samples = append(c.report.Samples, d)
}

// explain shows what is wrong with the samples: it runs the pipelines again, up
// to the events that they came of.
func (c *comparison) explain(ctx context.Context) error {
	type wantedOf struct {
		partition int32
		offset    int64
	}
	wanted := map[wantedOf][]int{}
	until := map[int32]int64{}
	for i := range c.report.Samples {
		d := &c.report.Samples[i]
		if d.wanted == nil || d.wanted.source > 0 {
			continue
		}
		wanted[wantedOf{d.In.Partition, d.In.Offset}] = append(wanted[wantedOf{d.In.Partition, d.In.Offset}], i)
		until[d.In.Partition] = max(until[d.In.Partition], d.In.Offset+1)
	}
	r := c.rehearse(c.pl, c.cluster.Limits())
	for _, p := range slices.Sorted(maps.Keys(until)) {
		span := c.inputs[c.pl.From.Name][p].Bounds
		span.End = until[p]
		if err := r.assign(ctx, c.cluster, p, span.Start); err != nil {
			return err
		}
		err := kafka.ReadRange(ctx, c.kafka, c.pl.From.Name, p, span, func(in *pipeline.Record) error {
			out, err := r.handle(ctx, in, &chainCounts{dead: map[pipeline.Reason]int{}})
			if err != nil {
				return err
			}
			for _, i := range wanted[wantedOf{in.Partition, in.Offset}] {
				if err := c.detail(ctx, &c.report.Samples[i], r, in, out); err != nil {
					return err
				}
			}
			r.next()
			return nil
		})
		if err != nil {
			return err
		}
	}
	for i := range c.report.Samples {
		d := &c.report.Samples[i]
		if d.wanted != nil || d.Found == nil {
			continue
		}
		rec, s, err := c.fetch(ctx, *d.Found)
		if err != nil {
			return err
		}
		d.Text = append(d.Text, "found    "+recordText(rec, s))
	}
	return nil
}

// detail completes a disagreement, whose event has just been run.
func (c *comparison) detail(ctx context.Context, d *disagreement, r *rehearsal, in *pipeline.Record, out []pipeline.Record) error {
	for i := range out {
		var group, body uint64
		s := r.sample(in, &out[i])
		if s.Stage != "" {
			group, body = c.letter(&out[i])
		} else {
			typ, content := r.typeOf(&out[i])
			group, body = c.event(out[i].Topic, out[i].Key, c.pl.Output[typ].Name(), content)
		}
		if group != d.wanted.group || body != d.wanted.body {
			continue
		}
		d.Topic, d.Key = out[i].Topic, string(out[i].Key)
		if d.Found != nil {
			d.Found.Topic = d.Topic
		}
		if d.Kind != "different" {
			d.Text = append(d.Text, "expected "+clip(sampleText(s), 300))
			return nil
		}
		rec, schema, err := c.fetch(ctx, *d.Found)
		if err != nil {
			return err
		}
		found := recordText(rec, schema)
		var differing []string
		if s.Stage == "" && schema != nil && schema.Name() == c.pl.Output[typeNumber(&out[i])].Name() {
			_, content, err := codec.Unframe(&rec)
			if err != nil {
				return err
			}
			differing = changes(s.Event, eventJSON(schema, content))
			differing = slices.DeleteFunc(differing, func(line string) bool { return c.ignores(s.Type, line) })
		}
		if len(differing) > 0 {
			d.Text = append(d.Text, differing...)
		} else {
			d.Text = append(d.Text, "expected "+clip(sampleText(s), 300), "found    "+found)
		}
		return nil
	}
	return nil
}

// typeNumber returns the number of the type of what a rehearsal wrote.
func typeNumber(r *pipeline.Record) int { return int(binary.BigEndian.Uint32(r.Value[1:frameSize])) }

// ignores reports whether a change is of a field that is not compared.
func (c *comparison) ignores(typ, line string) bool {
	path, _, _ := strings.Cut(line, ": ")
	return slices.ContainsFunc(c.report.Ignored, func(f string) bool { return f == typ+"."+path })
}

func sampleText(s sampleRecord) string {
	if s.Stage != "" {
		return fmt.Sprintf("a dead letter of %s: %s", s.Stage, s.Error)
	}
	return s.Type + " " + string(s.Event)
}

// fetch reads a record again.
func (c *comparison) fetch(ctx context.Context, at place) (rec pipeline.Record, s *codec.Schema, err error) {
	err = kafka.ReadRange(ctx, c.kafka, at.Topic, at.Partition, kafka.Bounds{Start: at.Offset, End: at.Offset + 1}, func(r *pipeline.Record) error {
		rec = *r
		rec.Key, rec.Value, rec.Headers = bytes.Clone(r.Key), bytes.Clone(r.Value), slices.Clone(r.Headers)
		return nil
	})
	if err != nil {
		return rec, nil, err
	}
	if ref, _, err := codec.Unframe(&rec); err == nil && len(rec.Value) >= frameSize {
		if s, err = c.registry.Schema(ctx, ref); err != nil && pipeline.ClassOf(err) != pipeline.ClassReject {
			return rec, nil, err
		}
	}
	return rec, s, nil
}

func recordText(r pipeline.Record, s *codec.Schema) string {
	if reason, ok := r.Header(headerError); ok {
		at, _ := r.Header(headerStage)
		return fmt.Sprintf("a dead letter of %s: %s", at, clip(string(reason), 300))
	}
	if s == nil {
		return fmt.Sprintf("%d bytes that are no event: %x", len(r.Value), r.Value[:min(len(r.Value), 40)])
	}
	text := json.RawMessage("null")
	if _, body, err := codec.Unframe(&r); err == nil {
		text = eventJSON(s, body)
	}
	return clip(shortName(s)+" "+string(text), 300)
}
