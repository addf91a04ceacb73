package topology

import (
	"slices"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/codec/resolve"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/metadata"
	"millrace/pipeline/stage"
)

// declarePipeline adds a pipeline to the plan. buildPipelines builds its stages
// later.
func (l *loader) declarePipeline(item stage.Item) {
	p := &declared{name: item.Key, args: item.Args, what: "pipeline " + item.Key.Text, pipeline: &Pipeline{Name: item.Key.Text}}
	l.checkName("pipeline", item.Key)
	for _, other := range l.projections {
		if other.name.Text == p.name.Text {
			l.at(item.Key, "use different names: both name a consumer group",
				"%s has the same name as a projection (%d:%d)", p.what, other.name.Line, other.name.Col)
		}
	}
	l.pipelines = append(l.pipelines, p)
	l.plan.Pipelines = append(l.plan.Pipelines, p.pipeline)
	if arg, ok := p.args.Find("guarantee"); ok {
		p.pipeline.Guarantee = arg.Value.Text
	}
	topic := func(name, use string) *Topic {
		t, arg := l.find(p.args, name)
		if t == nil || !l.claim(t, arg.Value, use) {
			return nil
		}
		return t.Topic
	}
	p.pipeline.From = topic("from", asEvents)
	p.pipeline.To = topic("to", asEvents)
	p.pipeline.DeadLetter = topic("dead_letter", asDeadLetters)
	if arg, ok := p.args.Find("receipts"); ok {
		if p.pipeline.Receipts = topic("receipts", asReceipts); p.pipeline.Receipts != nil {
			l.checkReceipts(l.topics[p.pipeline.Receipts.Name], arg.Value)
		}
	}
	p.targets = l.findTargets(p)
}

// findCycles finds cycles of pipelines, in which an event would circulate forever.
func (l *loader) findCycles() {
	next := map[*Topic][]*declared{}
	for _, p := range l.pipelines {
		if p.pipeline.From != nil {
			next[p.pipeline.From] = append(next[p.pipeline.From], p)
		}
	}
	const (
		entered = 1 + iota // the topic is on the current path
		left               // all cycles through the topic are found
	)
	state := map[*Topic]int{}
	var path []*declared
	var visit func(t *Topic)
	visit = func(t *Topic) {
		state[t] = entered
		for _, p := range next[t] {
			path = append(path, p)
			for _, to := range p.targets {
				switch state[to.Topic] {
				case entered:
					l.cycle(path, to)
				case left:
				default:
					visit(to.Topic)
				}
			}
			path = path[:len(path)-1]
		}
		state[t] = left
	}
	for _, p := range l.pipelines {
		if t := p.pipeline.From; t != nil && state[t] == 0 {
			visit(t)
		}
	}
}

// cycle reports that the last pipeline of a path writes to the input of a pipeline on
// the path.
func (l *loader) cycle(path []*declared, back target) {
	first := slices.IndexFunc(path, func(p *declared) bool { return p.pipeline.From == back.Topic })
	names := []string{back.Name}
	for _, p := range path[first:] {
		p.failed = true // it is not built, so its topics get no further faults
		names = append(names, p.name.Text)
	}
	l.at(back.at, "write to another topic", "events would circulate forever: %s, and back to %s", strings.Join(names, " -> "), back.Name)
}

// A target is a topic that a pipeline may write to, and the place that names it.
type target struct {
	*Topic
	at expr.Source
}

// findTargets returns the topics that a pipeline may write passing events to: to, and
// the topics that its stages name. The pipeline does not have to be built.
func (l *loader) findTargets(p *declared) (out []target) {
	if p.pipeline.To != nil {
		to, _ := p.args.Find("to")
		out = append(out, target{p.pipeline.To, to.Value})
	}
	stages, _ := p.args.Find("stages")
	for _, item := range stages.Items {
		for _, one := range item.Args {
			out = l.appendTargets(out, one.Items[0].Args, l.o.Stages[one.Name].Params)
		}
	}
	return out
}

// appendTargets appends the declared topics that parameters name, nested ones
// included.
func (l *loader) appendTargets(out []target, args stage.Args, params []stage.Param) []target {
	for _, a := range args {
		i := slices.IndexFunc(params, func(p stage.Param) bool { return p.Name == a.Name })
		if i < 0 {
			continue
		}
		if params[i].Topic {
			for _, word := range append(a.Words, a.Value) {
				if t := l.topics[word.Text]; t != nil {
					out = append(out, target{t.Topic, word})
				}
			}
		}
		for _, item := range a.Items {
			out = l.appendTargets(out, item.Args, params[i].Params)
		}
	}
	return out
}

// buildPipelines builds the pipelines. The writers of a topic without declared types
// are built before its readers, because they determine its types.
func (l *loader) buildPipelines() {
	writers := map[*Topic][]*declared{}
	for _, p := range l.pipelines {
		p.done = p.failed || p.pipeline.From == nil
		for _, t := range p.targets {
			writers[t.Topic] = append(writers[t.Topic], p)
			if p.done { // the types that it would write are unknown
				l.topics[t.Name].unsure = true
			}
		}
	}
	var build func(p *declared)
	build = func(p *declared) {
		if p.done {
			return
		}
		p.done = true
		if from := p.pipeline.From; !l.topics[from.Name].typed {
			for _, q := range writers[from] {
				build(q)
			}
		}
		l.buildPipeline(p)
	}
	for _, p := range l.pipelines {
		build(p)
	}
}

// buildPipeline builds a pipeline and adds its output types to the topics that it
// writes. If it has faults, the types of these topics become unsure.
func (l *loader) buildPipeline(p *declared) {
	from := l.topics[p.pipeline.From.Name]
	if len(from.Types) == 0 {
		l.untyped(from, p)
		for _, t := range p.targets {
			l.topics[t.Name].unsure = true
		}
		return
	}
	if !l.checkBare(from) {
		for _, t := range p.targets {
			l.topics[t.Name].unsure = true
		}
		return
	}
	l.settleIdentity(from)
	b := &builder{loader: l, declared: p, from: from}
	b.build()
	seen := map[*Topic]bool{}
	for _, t := range p.targets {
		switch {
		case seen[t.Topic] || !l.claim(l.topics[t.Name], t.at, asEvents):
		case b.failed:
			l.topics[t.Name].unsure = true
		default:
			l.addOutput(p, l.topics[t.Name], t.at)
		}
		seen[t.Topic] = true
	}
}

// addOutput adds the types that a pipeline writes to a topic, or checks them against
// the declared types.
func (l *loader) addOutput(p *declared, t *topic, at expr.Source) {
	l.inheritEnvelope(p, t, at)
	for i, s := range p.pipeline.Output {
		if !slices.Contains(p.pipeline.Targets[i], t.Topic) {
			continue
		}
		if p.pipeline.Sections[i].Reshaped() && t.Bare == nil && !l.checkEnvelope(at, s) {
			t.unsure = true
			continue
		}
		l.checkOneType(p, t, s, at)
		j := slices.IndexFunc(t.Types, func(have *codec.Schema) bool { return have.Name() == s.Name() })
		switch {
		case j < 0 && t.typed && !t.unsure:
			l.at(at, "add it to the types of the topic, or filter it out", "%s writes %s to %s, which does not declare this type", p.what, short(s), t.Name)
		case j < 0:
			t.Types = append(t.Types, s)
		case t.typed:
			if why := unreadable(s, t.Types[j]); why != "" {
				l.at(at, "declare a schema that can read it, or remove types from the topic", "%s writes %s to %s in a form that the declared schema cannot read: %s", p.what, short(s), t.Name, why)
			}
		case !codec.SameBytes(s, t.Types[j]):
			l.at(at, "declare types on the topic, with a schema that can read both forms", "%s writes %s to %s in another form than a pipeline before it", p.what, short(s), t.Name)
		}
	}
}

// checkOneType checks that the subject of a type that a pipeline writes holds no other type.
func (l *loader) checkOneType(p *declared, t *topic, s *codec.Schema, at expr.Source) {
	if t.written == nil {
		t.written = s
	}
	if t.Subjects == codec.TopicName && t.written.Name() != s.Name() {
		l.at(at, "set subjects: topic_record on the topic, or write each type to a topic of its own",
			"%s writes %s to %s, but with subjects: topic the subject %s holds one type, here %s", p.what, short(s), t.Name, t.Subject(s), short(t.written))
	}
}

// unreadable returns why some values of a writer's schema cannot be read with another one,
// "" if all can.
func unreadable(writer, reader *codec.Schema) string {
	changes, err := resolve.Of(writer, reader)
	if err != nil {
		return err.Error()
	}
	for _, c := range changes {
		if c.Kind == resolve.Partial {
			return c.String()
		}
	}
	return ""
}

// inheritEnvelope gives a topic that declares no envelope the id and time expressions
// of the pipeline's input. The key is not inherited: the pipeline writes it as the
// record's key.
func (l *loader) inheritEnvelope(p *declared, t *topic, at expr.Source) {
	if t.typed || t.envelope {
		return
	}
	var bare *expr.Bare
	if from := p.pipeline.From.Bare; from != nil {
		bare = &expr.Bare{ID: from.ID, Time: from.Time, RecordKey: metadata.KeyOf(t.KeyFormat)}
		if p.pipeline.reshapes() {
			bare.Time = expr.Source{} // the expressions are about the fields before the stage
		}
		if p.splits() || p.pipeline.reshapes() {
			bare.ID = expr.Source{} // all parts of an event would have the same id
		}
		if t.envelopeFrom == nil && l.losesMetadata(p, bare, t, at) {
			t.checked, t.bad, t.unsure = true, true, true
		}
	}
	if t.envelopeFrom == nil {
		t.envelopeFrom, t.Bare = p, bare
		return
	}
	if (bare == nil) != (t.Bare == nil) || bare != nil && (bare.ID.Text != t.Bare.ID.Text || bare.Time.Text != t.Bare.Time.Text) {
		l.at(at, "use a separate topic for each, or set envelope: none with id and time on this topic",
			"%s and %s both write %s, but their events have different expressions for id or time", t.envelopeFrom.what, p.what, t.Name)
		t.checked, t.bad, t.unsure = true, true, true
	}
}

// losesMetadata reports whether the events that a pipeline writes have another id or time
// than those that it reads: the expressions for them read a part of the record that the
// pipeline replaces. That is a fault.
func (l *loader) losesMetadata(p *declared, bare *expr.Bare, t *topic, at expr.Source) bool {
	from := p.pipeline.From
	var use metadata.Use
	for _, s := range from.Types {
		of, _ := bare.Compile(s, from.Name) // checkBare found no faults
		use.Add(of.Metadata())
	}
	what := ""
	if sets, _ := l.setsKeys(p); sets && use.Key {
		what = "the record's key, which " + p.what + " sets"
	}
	for _, name := range use.Names {
		if t.Headers == NoHeaders && strings.HasPrefix(name, "ce_") {
			what = "the header " + name + ", which " + p.what + " removes"
		}
	}
	if what != "" {
		l.at(at, "set envelope: none with id and time on "+t.Name, "the id or the time of the events on %s depends on %s, so the events would have another one on %s", from.Name, what, t.Name)
	}
	return what != ""
}

// inheritHeaders gives a topic that declares no headers those of the pipeline's
// input.
func (l *loader) inheritHeaders(p *declared, t *topic, at expr.Source) {
	switch from := p.pipeline.From.Headers; {
	case t.headers.Line > 0:
	case t.headersFrom == nil:
		t.headersFrom, t.Headers = p, from
	case t.Headers != from:
		l.at(at, "set headers on the topic", "%s and %s both write %s, but only one of them reads events with CloudEvents headers", t.headersFrom.what, p.what, t.Name)
	}
}

// splits reports whether the stages so far can split an event into several.
func (p *declared) splits() bool {
	return slices.ContainsFunc(p.pipeline.Stages, func(s Stage) bool { _, ok := s.Built.(pipeline.Splitter); return ok })
}

// reshapes reports whether the stages so far can give an event another schema.
func (p *Pipeline) reshapes() bool {
	return slices.ContainsFunc(p.Stages, func(s Stage) bool { _, ok := s.Built.(stage.Reshaper); return ok })
}
