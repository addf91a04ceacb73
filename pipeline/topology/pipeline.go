package topology

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/stage"
)

func (l *loader) declarePipeline(item stage.Item) {
	p := &declared{name: item.Key, args: item.Args, what: "pipeline " + item.Key.Text, pipeline: &Pipeline{Name: item.Key.Text}}
	l.checkName("pipeline", item.Key)
	for _, other := range l.projections {
		if other.name.Text == p.name.Text {
			l.at(item.Key, "both are the names of consumer groups: give them different ones",
				"%s has the name of a projection (%d:%d)", p.what, other.name.Line, other.name.Col)
		}
	}
	l.pipelines = append(l.pipelines, p)
	l.plan.Pipelines = append(l.plan.Pipelines, p.pipeline)
	if arg, ok := p.args.Find("guarantee"); ok {
		p.pipeline.Guarantee = arg.Value.Text
	}
	topic := func(name, as string) *Topic {
		t, arg := l.find(p.args, name)
		if t == nil || !l.claim(t, arg.Value, as) {
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

// circles finds pipelines through which an event would go round for ever.
func (l *loader) circles() {
	next := map[*Topic][]*declared{}
	for _, p := range l.pipelines {
		if p.pipeline.From != nil {
			next[p.pipeline.From] = append(next[p.pipeline.From], p)
		}
	}
	const (
		entered = 1 + iota // it is on the way
		left               // no circle goes through it that has not been found
	)
	state := map[*Topic]int{}
	var way []*declared
	var visit func(t *Topic)
	visit = func(t *Topic) {
		state[t] = entered
		for _, p := range next[t] {
			way = append(way, p)
			for _, to := range p.targets {
				switch state[to.Topic] {
				case entered:
					l.circle(way, to)
				case left:
				default:
					visit(to.Topic)
				}
			}
			way = way[:len(way)-1]
		}
		state[t] = left
	}
	for _, p := range l.pipelines {
		if t := p.pipeline.From; t != nil && state[t] == 0 {
			visit(t)
		}
	}
}

// circle says that the last pipeline of the way leads back to where one of them
// began.
func (l *loader) circle(way []*declared, back target) {
	first := slices.IndexFunc(way, func(p *declared) bool { return p.pipeline.From == back.Topic })
	names := []string{back.Name}
	for _, p := range way[first:] {
		p.failed = true // and what is on its topics is not asked
		names = append(names, p.name.Text)
	}
	l.at(back.at, "write another topic", "events would go round for ever: %s, and back to %s", strings.Join(names, " -> "), back.Name)
}

// A target is a topic that a pipeline may write to, and where it is named.
type target struct {
	*Topic
	at expr.Source
}

// findTargets returns the topics that a pipeline may write what passes to, as far
// as that can be told before it is built: to, and what its stages name.
func (l *loader) findTargets(p *declared) (out []target) {
	if p.pipeline.To != nil {
		to, _ := p.args.Find("to")
		out = append(out, target{p.pipeline.To, to.Value})
	}
	var visit func(args stage.Args, params []stage.Param)
	visit = func(args stage.Args, params []stage.Param) {
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
				visit(item.Args, params[i].Params)
			}
		}
	}
	stages, _ := p.args.Find("stages")
	for _, item := range stages.Items {
		for _, one := range item.Args {
			visit(one.Items[0].Args, l.o.Stages[one.Name].Params)
		}
	}
	return out
}

// buildPipelines builds them in an order in which the types on a topic are
// known before somebody reads it.
func (l *loader) buildPipelines() {
	writers := map[*Topic][]*declared{}
	for _, p := range l.pipelines {
		p.done = p.failed || p.pipeline.From == nil
		for _, t := range p.targets {
			writers[t.Topic] = append(writers[t.Topic], p)
			if p.done { // what it would write is not known
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
	for _, t := range p.targets {
		l.inheritHeaders(p, l.topics[t.Name], t.at)
	}
	b := &builder{loader: l, declared: p, from: from}
	b.build()
	seen := map[*Topic]bool{}
	for _, t := range p.targets {
		switch {
		case seen[t.Topic] || !l.claim(l.topics[t.Name], t.at, asEvents):
		case b.failed:
			l.topics[t.Name].unsure = true
		default:
			l.written(p, l.topics[t.Name], t.at)
		}
		seen[t.Topic] = true
	}
}

// written takes in that a pipeline writes what comes out of it to a topic.
func (l *loader) written(p *declared, t *topic, at expr.Source) {
	l.inherit(p, t, at)
	for i, s := range p.pipeline.Output {
		if !slices.Contains(p.pipeline.Targets[i], t.Topic) {
			continue
		}
		j := slices.IndexFunc(t.Types, func(have *codec.Schema) bool { return have.Name() == s.Name() })
		switch {
		case j < 0 && t.typed && !t.unsure:
			l.at(at, "add it there, or filter it out", "%s writes %s to %s, whose types it is not among", p.what, short(s), t.Name)
		case j < 0:
			t.Types = append(t.Types, s)
		case t.typed:
			if _, err := codec.NewResolver(s, t.Types[j]); err != nil {
				l.at(at, "give it a schema that can, or leave its types to the pipeline", "%s writes %s to %s in a form that its declared schema cannot read: %v", p.what, short(s), t.Name, err)
			}
		case !codec.SameBytes(s, t.Types[j]):
			l.at(at, "give the topic types, with a schema that can read both", "%s writes %s to %s in another form than the pipeline before", p.what, short(s), t.Name)
		}
	}
}

// inherit takes in that the events on a topic which does not say so itself carry
// what those carried that a pipeline made them of. Their key is in the records.
func (l *loader) inherit(p *declared, t *topic, at expr.Source) {
	if t.typed || t.envelope {
		return
	}
	var bare *expr.Bare
	if from := p.pipeline.From.Bare; from != nil {
		bare = &expr.Bare{ID: from.ID, Time: from.Time}
		if p.splits() {
			bare.ID = expr.Source{} // the parts of an event would have the same
		}
	}
	if t.first == nil {
		t.first, t.Bare = p, bare
		return
	}
	if (bare == nil) != (t.Bare == nil) || bare != nil && (bare.ID.Text != t.Bare.ID.Text || bare.Time.Text != t.Bare.Time.Text) {
		l.at(at, "give each a topic of its own, or this one envelope: none with the id and time of its events",
			"%s and %s both write %s, but what stands for the id or the time of an event is not the same in both", t.first.what, p.what, t.Name)
		t.checked, t.bad, t.unsure = true, true, true
	}
}

// inheritHeaders takes in that records on a topic which does not say so itself have
// the headers of those that a pipeline made them of.
func (l *loader) inheritHeaders(p *declared, t *topic, at expr.Source) {
	switch from := p.pipeline.From.Headers; {
	case t.headers.Line > 0:
	case t.told == nil:
		t.told, t.Headers = p, from
	case t.Headers != from:
		l.at(at, "say with the topic which headers its records have", "%s and %s both write %s, but one of them reads events with the headers of CloudEvents", t.told.what, p.what, t.Name)
	}
}

// splits reports whether the stages so far may make several events of one.
func (p *declared) splits() bool {
	return slices.ContainsFunc(p.pipeline.Stages, func(s Stage) bool { _, ok := s.Built.(pipeline.Splitter); return ok })
}

// A builder builds one pipeline.
type builder struct {
	*loader
	*declared
	from *topic

	names   []string        // of the types
	schemas []*codec.Schema // as the stages so far leave them
	envs    []*expr.Env     // over them; nil where that has yet to be made
	alive   []string        // by type: "" or the stage that lets none pass
	failed  bool
	first   map[string]expr.Source // names of stages
}

func (b *builder) build() {
	pl := b.pipeline
	pl.Types = b.from.Types
	b.names = typeNames(pl.Types)
	b.schemas = slices.Clone(pl.Types)
	b.envs = make([]*expr.Env, len(pl.Types))
	b.alive = make([]string, len(pl.Types))
	pl.Targets = make([][]*Topic, len(pl.Types))
	for i := range pl.Targets {
		pl.Targets[i] = []*Topic{pl.To}
	}
	b.first = map[string]expr.Source{}
	b.failed = b.from.unsure || pl.To == nil
	stages, _ := b.args.Find("stages")
	for _, item := range stages.Items {
		if !b.stage(item) {
			b.failed = true
			return
		}
	}
	if b.failed {
		return
	}
	pl.Output = b.schemas
	pl.Emits = make([]bool, len(pl.Types))
	for i := range pl.Emits {
		if pl.Emits[i] = b.alive[i] == ""; !pl.Emits[i] {
			pl.Targets[i] = nil
		}
	}
	b.checkCloudEvents()
	if err := b.bind(); err != nil {
		b.at(b.name, "", "%s: %v", b.what, err)
		b.failed = true
	}
}

// checkCloudEvents finds topics that would get CloudEvents without an id.
func (b *builder) checkCloudEvents() {
	bare := b.from.Bare
	for _, t := range b.targets {
		switch {
		case t.Headers != CloudEvents || bare == nil:
		case bare.ID.Text == "":
			b.at(t.at, "say with "+b.from.Name+" what its id is", "a CloudEvent has an id, and the events that %s reads have none", b.what)
		case b.splits():
			b.at(t.at, "write a topic with headers: none", "a CloudEvent has an id of its own, and the parts of an event without an envelope have none")
		}
	}
}

// cloudEvents reports whether some topic that the pipeline writes gets CloudEvents.
func (b *builder) cloudEvents() bool {
	return slices.ContainsFunc(b.targets, func(t target) bool { return t.Headers == CloudEvents })
}

// stage builds one stage. It returns false if what comes after it cannot be
// checked.
func (b *builder) stage(item stage.Item) bool {
	if len(item.Args) == 0 {
		b.failed = true
		return false // who knows what it was to do
	}
	arg := item.Args[0]
	kind := b.o.Stages[arg.Name]
	args := arg.Items[0].Args
	decoded := !b.faulty[place{item.Key.Line, item.Key.Col}]
	s := Stage{Name: kind.Name, Kind: kind}
	at := item.Key
	if given, ok := args.Find("name"); ok {
		s.Name, at = given.Value.Text, given.Value
		b.checkName("stage", given.Value)
	}
	if first, twice := b.first[s.Name]; twice {
		b.at(at, "give it another name: its counts and its state are kept under it", "%s has two stages named %s; the first is at %d:%d", b.what, s.Name, first.Line, first.Col)
		b.failed = true
	}
	b.first[s.Name] = at
	if given, ok := args.Find("on_error"); ok {
		s.OnError = map[string]pipeline.OnError{onErrorSkip: pipeline.Skip, onErrorStop: pipeline.Stop}[given.Value.Text]
	}
	s.On = b.on(args, item.Key, s.Name)
	if s.On == nil {
		b.failed = true
		return true
	}
	if !decoded {
		b.failed = true
		if slices.ContainsFunc(kind.Params, func(p stage.Param) bool {
			_, given := args.Find(p.Name)
			return p.Required && !given
		}) {
			return !kind.Grows
		}
	}
	in := stage.Input{
		At: item.Key, Name: s.Name, Tables: b.tables, Schema: b.schema, File: b.o.File,
		ID: b.eventID(item.Key), Args: b.sound(args),
		Types: make([]stage.Type, len(b.schemas)),
	}
	for _, t := range b.plan.Topics {
		in.Topics = append(in.Topics, t.Name)
	}
	var on []string
	for i := range b.schemas {
		consts := b.consts(i)
		if b.envs[i] == nil {
			env, err := b.env(b.schemas[i], consts)
			if err != nil {
				b.at(item.Key, "", "%s: %v", b.names[i], err)
				b.failed = true
				return false
			}
			b.envs[i] = env
		}
		in.Types[i] = stage.Type{Name: b.names[i], Schema: b.schemas[i], Consts: consts, Env: b.envs[i], On: s.On[i]}
		if s.On[i] {
			on = append(on, b.names[i])
		}
	}
	built, faults := kind.New(in)
	if !decoded { // that something is missing may be because it was faulty
		faults = slices.DeleteFunc(faults, func(f expr.Fault) bool { return f.Source == in.At || f.Source.Line == 0 })
	}
	if b.grouped(faults, on); len(faults) > 0 || !decoded {
		b.failed = true
		grower, ok := built.(stage.Grower)
		if ok {
			b.grow(grower)
		}
		return decoded && ok || !kind.Grows
	}
	s.Built = built
	b.keepsSubject(s, item.Key)
	b.pipeline.Stages = append(b.pipeline.Stages, s)
	b.learn(s)
	return true
}

// sound returns the arguments that are the stage's own, without the items that
// were not decoded whole.
func (b *builder) sound(args stage.Args) (out stage.Args) {
	for _, a := range args {
		if slices.ContainsFunc(commonParams, func(p stage.Param) bool { return p.Name == a.Name }) {
			continue
		}
		a.Items = slices.Clone(a.Items)
		a.Items = slices.DeleteFunc(a.Items, func(i stage.Item) bool { return b.faulty[place{i.Key.Line, i.Key.Col}] })
		out = append(out, a)
	}
	return out
}

func (b *builder) schema(name string) (*codec.Schema, error) {
	if s := b.loader.schemas.older[name]; s != nil {
		return s, nil
	}
	s, msg, hint := b.loader.schemas.find(name)
	if s == nil {
		if near := expr.Nearest(name, slices.Sorted(maps.Keys(b.loader.schemas.older))); near != "" {
			hint = near
		}
	}
	switch {
	case s != nil:
		return s, nil
	case msg == "":
		return nil, fmt.Errorf("the schema of %s is faulty", name)
	}
	return nil, &expr.Error{Msg: msg, Hint: hint}
}

// env returns what expressions may name in events of a schema, once for all
// pipelines: it takes longer to make than an expression to compile.
func (l *loader) env(s *codec.Schema, consts map[string]string) (*expr.Env, error) {
	key := envKey{s, consts != nil}
	if env := l.envs[key]; env != nil {
		return env, nil
	}
	env, err := expr.NewEnv(expr.Root{Schema: s, Consts: consts})
	if err == nil {
		env.Clock = l.o.Clock
		l.envs[key] = env
	}
	return env, err
}

// envKey says what an environment depends on: the constants, if there are any,
// follow from the schema.
type envKey struct {
	schema *codec.Schema
	consts bool
}

// consts returns the fields whose value the type fixes.
func (b *builder) consts(typ int) map[string]string {
	if b.from.Bare != nil {
		return nil
	}
	return map[string]string{"type": short(b.schemas[typ])}
}

// eventID returns what stands for an event's id; nothing if events have none.
func (b *builder) eventID(at expr.Source) expr.Source {
	if bare := b.from.Bare; bare != nil && !b.splits() {
		return bare.ID
	} else if bare != nil {
		return expr.Source{}
	}
	return expr.Source{Text: "id", Line: at.Line, Col: at.Col}
}

// on returns for which types a stage is; nil, with a fault, if it is for none.
func (b *builder) on(args stage.Args, at expr.Source, name string) []bool {
	on := make([]bool, len(b.schemas))
	given, ok := args.Find("on")
	some := false
	for i := range on {
		on[i] = !ok && b.alive[i] == ""
		some = some || on[i]
	}
	if !ok {
		if !some {
			b.at(at, "remove it, or what is before it", "no event can reach stage %s: %s lets none pass", name, b.alive[0])
			return nil
		}
		return on
	}
	if len(given.Words) == 0 {
		b.at(given.Key, "leave it out to be for all types", "stage %s is for no type: on is empty", name)
		return nil
	}
	for _, word := range given.Words {
		i := b.typeOf(word, b.pipeline.Types, b.from)
		switch {
		case i < 0:
			b.failed = true
		case b.alive[i] != "":
			b.at(word, "remove it here, or let it pass there", "no %s can reach stage %s: %s lets none pass", b.names[i], name, b.alive[i])
			b.failed = true
		default:
			on[i], some = true, true
		}
	}
	if !some {
		return nil
	}
	return on
}

// learn takes in what a stage does to types and schemas.
func (b *builder) learn(s Stage) {
	if gate, ok := s.Built.(stage.Gate); ok {
		for i := range b.alive {
			if s.On[i] && !gate.Passes(i) {
				b.alive[i] = s.Name
			}
		}
	}
	if grower, ok := s.Built.(stage.Grower); ok {
		b.grow(grower)
	}
	if router, ok := s.Built.(stage.Router); ok {
		for _, name := range router.Topics() {
			if t := b.topics[name]; t != nil {
				b.pipeline.routes = append(b.pipeline.routes, t.Topic)
			}
		}
		for i := range b.pipeline.Targets {
			b.target(router, i)
		}
	}
}

func (b *builder) grow(g stage.Grower) {
	for i, grown := range g.Schemas() {
		if grown != nil {
			b.schemas[i], b.envs[i] = grown, nil
		}
	}
}

// target takes in where a router sends events of a type.
func (b *builder) target(router stage.Router, typ int) {
	names, own := router.Targets(typ)
	targets := b.pipeline.Targets[typ]
	if !own {
		targets = nil
	}
	for _, name := range names {
		if t := b.topics[name]; t != nil && !slices.Contains(targets, t.Topic) {
			targets = append(targets, t.Topic)
		}
	}
	b.pipeline.Targets[typ] = targets
}

// bind lays out the fields that the stages use, and tells the stages.
func (b *builder) bind() error {
	pl := b.pipeline
	pl.Layouts = make([]*codec.Layout, len(pl.Types))
	if bare := pl.From.Bare; bare != nil && *bare != (expr.Bare{}) {
		pl.Bare = make([]expr.BareType, len(pl.Types))
		for i, s := range pl.Types {
			pl.Bare[i], _ = bare.Compile(s, pl.From.Name) // it was checked
		}
	}
	for i := range pl.Types {
		var paths [][]string
		if pl.Bare != nil {
			paths = append(paths, pl.Bare[i].Paths()...)
		}
		if pl.From.Bare == nil && b.cloudEvents() {
			paths = append(paths, []string{"id"}, []string{"timestamp"})
		}
		for _, s := range pl.Stages {
			if s.On[i] {
				paths = append(paths, s.Built.Reads(i)...)
				paths = append(paths, s.Built.Writes(i)...)
			}
		}
		var err error
		if pl.Layouts[i], err = codec.NewDerivedLayout(pl.Types[i], pl.Output[i], paths); err != nil {
			return err
		}
		if pl.Bare != nil {
			if err := pl.Bare[i].Bind(pl.Layouts[i]); err != nil {
				return err
			}
		}
	}
	for _, s := range pl.Stages {
		if up, ok := s.Built.(stage.Upcaster); ok {
			if err := b.bindOld(up); err != nil {
				return fmt.Errorf("stage %s: %w", s.Name, err)
			}
		}
		if err := s.Built.Bind(pl.Layouts); err != nil {
			return fmt.Errorf("stage %s: %w", s.Name, err)
		}
	}
	return nil
}

func (b *builder) bindOld(up stage.Upcaster) error {
	first := len(b.pipeline.Old)
	var layouts []*codec.Layout
	for _, shape := range up.Shapes() {
		layout, err := codec.NewLayout(shape.Schema, shape.Paths)
		if err != nil {
			return err
		}
		layouts = append(layouts, layout)
		b.pipeline.Old = append(b.pipeline.Old, Old{shape.Type, shape.Schema, layout})
	}
	return up.BindOld(first, layouts)
}
