package topology

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/identity"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology/align"
)

// A builder builds one pipeline, stage by stage. Slices are indexed by event type.
type builder struct {
	*loader
	*declared
	from *topic

	names   []string               // names of the types for messages
	schemas []*codec.Schema        // the schemas after the stages so far
	envs    []*expr.Env            // environments over these schemas; nil if not made yet
	known   []expr.Facts           // what the stages so far ensure
	blocked []string               // the stage that lets no event of the type pass; "" if there is none
	failed  bool                   // the pipeline has faults
	first   map[string]expr.Source // the first stage of each name
}

func (b *builder) build() {
	pl := b.pipeline
	pl.Types = b.from.Types
	b.names = typeNames(pl.Types)
	b.schemas = slices.Clone(pl.Types)
	b.envs = make([]*expr.Env, len(pl.Types))
	b.known = make([]expr.Facts, len(pl.Types))
	b.blocked = make([]string, len(pl.Types))
	pl.Targets = make([][]*Topic, len(pl.Types))
	pl.Sections = make([]stage.Sections, len(pl.Types))
	for i := range pl.Targets {
		pl.Targets[i] = []*Topic{pl.To}
		pl.Sections[i] = stage.Sections{{Base: pl.Types[i]}}
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
	for i, s := range b.schemas {
		b.pipeline.Sections[i].Last().Schema = s
	}
	pl.Emits = make([]bool, len(pl.Types))
	for i := range pl.Emits {
		if pl.Emits[i] = b.blocked[i] == ""; !pl.Emits[i] {
			pl.Targets[i] = nil
		}
	}
	b.checkCloudEvents()
	if b.failed {
		return
	}
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
		case t.Headers == CloudEvents && bare == nil:
			b.failed = b.lacksEnvelope(t) || b.failed
		case t.Headers != CloudEvents:
		case bare.ID.Text == "":
			b.at(t.at, "set id: EXPRESSION on "+b.from.Name, "a CloudEvent needs an id, but the events that %s reads have none", b.what)
		case b.splits():
			b.at(t.at, "write to a topic with headers: none", "a CloudEvent needs its own id, but the parts of a split event without an envelope have none")
		}
	}
}

// lacksEnvelope checks the types that stages gave events for a topic. It returns whether
// one has no envelope.
func (b *builder) lacksEnvelope(t target) (lacks bool) {
	for i, s := range b.schemas {
		if b.pipeline.Sections[i].Reshaped() && slices.Contains(b.pipeline.Targets[i], t.Topic) {
			lacks = !b.checkEnvelope(t.at, s) || lacks
		}
	}
	return lacks
}

// writesCloudEvents reports whether a topic that events of a type are written to has
// CloudEvents headers.
func (b *builder) writesCloudEvents(typ int) bool {
	return slices.ContainsFunc(b.pipeline.Targets[typ], func(t *Topic) bool { return t.Headers == CloudEvents })
}

// stage builds one stage. It returns false if the stages after it cannot be checked.
func (b *builder) stage(item stage.Item) bool {
	if len(item.Args) == 0 {
		b.failed = true
		return false // the kind of the stage is unknown, and so is its effect on schemas
	}
	arg := item.Args[0]
	kind := b.o.Stages[arg.Name]
	args := arg.Items[0].Args
	decoded := !b.faulty[align.At(item.Key.Line, item.Key.Col)]
	s := Stage{Name: b.stageName(kind, args, item.Key), Kind: kind}
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
		if lacksRequired(kind, args) {
			return !kind.AddsFields
		}
	}
	in, ok := b.input(s, args, item.Key)
	if !ok {
		return false
	}
	built, faults := kind.New(in)
	if !decoded { // a parameter may only seem to be missing because its value was faulty
		faults = slices.DeleteFunc(faults, func(f expr.Fault) bool { return f.Source == in.At || f.Source.Line == 0 })
	}
	var on []string
	for i, name := range b.names {
		if s.On[i] {
			on = append(on, name)
		}
	}
	if b.grouped(b.hintTypes(faults), on); len(faults) > 0 || !decoded {
		b.failed = true
		grower, ok := built.(stage.FieldAdder)
		if ok {
			b.grow(grower)
		}
		return decoded && ok || !kind.AddsFields
	}
	s.Built = built
	for _, t := range in.Types {
		b.warns = append(b.warns, expressionWarnings{t.Env.Warnings(), on})
	}
	b.keepsSubject(s, item.Key)
	b.checkReshaped(s, item.Key)
	b.pipeline.Stages = append(b.pipeline.Stages, s)
	b.applyEffects(s)
	return true
}

// checkReshaped checks a stage that gives events another schema, or stands after one.
func (b *builder) checkReshaped(s Stage, at expr.Source) {
	if _, ok := s.Built.(stage.Reshaper); ok && s.OnError == pipeline.Skip {
		b.at(at, "use on_error: dead_letter or stop", "stage %s gives events another schema, so it cannot skip one: it would pass in its old form", s.Name)
		b.failed = true
	}
	if !s.Kind.Moves {
		return
	}
	for _, before := range b.pipeline.Stages {
		for typ, on := range s.On {
			if on && before.deletes(typ) {
				b.at(at, "put it before "+before.Name, "stage %s sets the key, the topic or the number of events, but %s before it writes tombstones, which do not reach it", s.Name, before.Name)
				b.failed = true
				return
			}
		}
	}
}

// stageName returns the name of a stage and checks that it is valid and unique.
func (b *builder) stageName(kind stage.Kind, args stage.Args, key expr.Source) string {
	name, at := kind.Name, key
	if given, ok := args.Find("name"); ok {
		name, at = given.Value.Text, given.Value
		b.checkName("stage", given.Value)
	}
	if first, twice := b.first[name]; twice {
		b.at(at, "use another name: the metrics and the state of a stage are stored under its name", "%s has two stages named %s; the first one is at %d:%d", b.what, name, first.Line, first.Col)
		b.failed = true
	}
	b.first[name] = at
	return name
}

// lacksRequired reports whether a required parameter of a stage is missing.
func lacksRequired(kind stage.Kind, args stage.Args) bool {
	return slices.ContainsFunc(kind.Params, func(p stage.Param) bool {
		_, given := args.Find(p.Name)
		return p.Required && !given
	})
}

// input returns the input of a stage's constructor. ok is false, with a fault, if the
// environment of a type cannot be made.
func (b *builder) input(s Stage, args stage.Args, key expr.Source) (in stage.Input, ok bool) {
	in = stage.Input{
		At: key, Name: s.Name, Tables: b.tables, Schema: b.schema, File: b.o.File,
		ID: b.eventID(key), Bare: b.from.Bare, From: b.from.Name, Args: b.ownArgs(args),
		Types: make([]stage.Type, len(b.schemas)),
	}
	in.Identity, in.NoIdentity = b.identity()
	for _, t := range b.plan.Topics {
		in.Topics = append(in.Topics, t.Name)
	}
	for i := range b.schemas {
		consts := b.consts(i)
		if b.envs[i] == nil {
			env, err := b.env(b.schemas[i], consts, b.from.KeyFormat)
			if err != nil {
				b.at(key, "", "%s: %v", b.names[i], err)
				b.failed = true
				return in, false
			}
			b.envs[i] = env
		}
		in.Types[i] = stage.Type{Name: b.names[i], Schema: b.schemas[i], Consts: consts, Env: b.envs[i].Knowing(b.known[i]), On: s.On[i]}
	}
	return in, true
}

// noField matches the fault of an expression or a path that uses a field which an event
// type does not have: the name of the record and the path in it.
var noField = regexp.MustCompile(`^(\S+) has no field ([\w.]+)$`)

// hintTypes adds a hint to faults about a field that only some event types have: limit
// the stage to these types.
func (b *builder) hintTypes(faults []expr.Fault) []expr.Fault {
	faults = slices.Clone(faults)
	for i, f := range faults {
		m := noField.FindStringSubmatch(f.Msg)
		typ := slices.Index(b.names, f.Type)
		if m == nil || typ < 0 || m[1] != b.schemas[typ].Name() { // a record inside the event
			continue
		}
		var have []string
		for typ, s := range b.schemas {
			if b.blocked[typ] == "" && hasField(s.Root(), strings.Split(m[2], ".")) {
				have = append(have, b.names[typ])
			}
		}
		verb := "have"
		if len(have) == 1 {
			verb = "has"
		}
		if len(have) > 0 {
			names := strings.Join(have, ", ")
			faults[i].Hint = fmt.Sprintf("only %s %s this field: limit the stage with on: [%s]", names, verb, names)
		}
	}
	return faults
}

// hasField reports whether a record has a field at a path. Of a field that may be null,
// the other type counts.
func hasField(n *codec.Node, path []string) bool {
	for _, name := range path {
		n = n.NotNull()
		f := n.Field(name)
		if n.Kind != codec.Record || f == nil {
			return false
		}
		n = f.Type
	}
	return true
}

// ownArgs returns the parameters that are not common to all stages, without items
// that have faults.
func (b *builder) ownArgs(args stage.Args) (out stage.Args) {
	for _, a := range args {
		if slices.ContainsFunc(commonParams, func(p stage.Param) bool { return p.Name == a.Name }) {
			continue
		}
		a.Items = slices.Clone(a.Items)
		a.Items = slices.DeleteFunc(a.Items, func(i stage.Item) bool { return b.faulty[align.At(i.Key.Line, i.Key.Col)] })
		out = append(out, a)
	}
	return out
}

// schema finds a schema for a stage: an older shape by its file name, or a record.
func (b *builder) schema(name string) (*codec.Schema, error) {
	if s := b.loader.schemas.older[name]; s != nil {
		return s, nil
	}
	s, msg, hint := b.loader.schemas.find(name)
	if s == nil {
		if near := expr.Suggest(name, slices.Sorted(maps.Keys(b.loader.schemas.older))); near != "" {
			hint = near
		}
	}
	switch {
	case s != nil:
		return s, nil
	case msg == "":
		return nil, fmt.Errorf("the schema of %s has faults", name)
	}
	return nil, &expr.Error{Msg: msg, Hint: hint}
}

// consts returns the fields whose value follows from the event type.
func (b *builder) consts(typ int) map[string]string {
	if b.from.Bare != nil || b.pipeline.Sections[typ].Reshaped() {
		return nil // the field type of another schema can have any value
	}
	return map[string]string{"type": short(b.schemas[typ])}
}

// eventID returns the expression for an event's id; it is empty if events have none.
func (b *builder) eventID(at expr.Source) expr.Source {
	if bare := b.from.Bare; bare != nil && !b.splits() && !b.pipeline.reshapes() {
		return bare.ID
	} else if bare != nil {
		return expr.Source{}
	}
	return expr.Source{Text: "id", Line: at.Line, Col: at.Col}
}

// identity returns what identifies the events at this stage, or which stage took it away.
// Without an envelope, all parts of a split event would have the same identity.
func (b *builder) identity() (id identity.Identity, taken string) {
	for _, s := range b.pipeline.Stages {
		_, splits := s.Built.(pipeline.Splitter)
		switch _, reshapes := s.Built.(stage.Reshaper); {
		case reshapes:
			return nil, "stage " + s.Name + " before it gives events another schema"
		case splits && len(b.from.Identity) > 0 && (b.from.Bare != nil || !b.from.Identity.HasID()):
			return nil, "all parts that stage " + s.Name + " before it makes of an event have the same one"
		}
	}
	return b.from.Identity, ""
}

// on reports, by event type, whether a stage handles it. It returns nil, with a
// fault, if the stage handles no type.
func (b *builder) on(args stage.Args, at expr.Source, name string) []bool {
	on := make([]bool, len(b.schemas))
	given, ok := args.Find("on")
	some := false
	for i := range on {
		on[i] = !ok && b.blocked[i] == ""
		some = some || on[i]
	}
	if !ok {
		if !some {
			b.at(at, "remove the stage, or the one that blocks it", "no event can reach stage %s: stage %s lets none pass", name, b.blocked[0])
			return nil
		}
		return on
	}
	if len(given.Words) == 0 {
		b.at(given.Key, "remove on to handle all types", "stage %s handles no type: on is empty", name)
		return nil
	}
	for _, word := range given.Words {
		i := b.typeOf(word, b.schemas, b.from)
		switch {
		case i < 0:
			b.failed = true
		case b.blocked[i] != "":
			b.at(word, "remove it here, or let it pass there", "no %s can reach stage %s: stage %s lets none pass", b.names[i], name, b.blocked[i])
			b.failed = true
		default:
			on[i], some = true, true
			for j, s := range b.schemas { // a stage may have given several types the same schema
				on[j] = on[j] || b.blocked[j] == "" && s.Name() == b.schemas[i].Name()
			}
		}
	}
	if !some {
		return nil
	}
	return on
}

// applyEffects records the effects of a stage on types, schemas and targets.
func (b *builder) applyEffects(s Stage) {
	if gate, ok := s.Built.(stage.Gate); ok {
		for i := range b.blocked {
			if s.On[i] && !gate.Passes(i) {
				b.blocked[i] = s.Name
			}
		}
	}
	if grower, ok := s.Built.(stage.FieldAdder); ok {
		b.grow(grower)
	}
	for i := range b.known {
		if s.On[i] {
			b.learn(s, i)
		}
	}
	if reshaper, ok := s.Built.(stage.Reshaper); ok {
		b.reshape(reshaper)
	}
	if router, ok := s.Built.(stage.Router); ok {
		for _, name := range router.Topics() {
			if t := b.topics[name]; t != nil {
				b.pipeline.routes = append(b.pipeline.routes, t.Topic)
			}
		}
		for i := range b.pipeline.Targets {
			b.route(router, i)
		}
	}
}

// learn updates what is known about the events of a type after a stage.
func (b *builder) learn(s Stage, typ int) {
	for _, path := range stage.Sets(s.Built, typ) {
		b.known[typ] = b.known[typ].Without(strings.Join(path, "."))
	}
	if ensurer, ok := s.Built.(stage.Ensurer); ok && s.OnError != pipeline.Skip {
		b.known[typ] = b.known[typ].And(ensurer.Ensures(typ))
	}
}

// reshape begins a section for each type that a stage gives another schema.
func (b *builder) reshape(r stage.Reshaper) {
	for i := range b.schemas {
		if s := r.Reshaped(i); s != nil {
			b.pipeline.Sections[i].Last().Schema = b.schemas[i]
			b.pipeline.Sections[i] = append(b.pipeline.Sections[i], stage.Section{First: len(b.pipeline.Stages), Base: s})
			b.schemas[i], b.envs[i], b.known[i] = s, nil, nil
		}
	}
	b.names = typeNames(b.schemas)
}

// grow takes over the schemas that a stage changed.
func (b *builder) grow(g stage.FieldAdder) {
	rebuilder, rebuilds := g.(stage.Rebuilder)
	for i, grown := range g.Schemas() {
		if grown != nil && rebuilds && rebuilder.Rebuilds(i) {
			b.pipeline.Sections[i].Last().Schema = b.schemas[i]
			b.pipeline.Sections[i] = append(b.pipeline.Sections[i], stage.Section{First: len(b.pipeline.Stages) - 1, Base: grown, Rebuilt: true})
		}
		if grown != nil {
			b.schemas[i], b.envs[i] = grown, nil
		}
	}
}

// route updates the targets of a type by the topics that a router sends it to.
func (b *builder) route(router stage.Router, typ int) {
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

// bind makes the layouts of the fields that the stages use, and binds the stages to
// them.
func (b *builder) bind() error {
	pl := b.pipeline
	pl.Layouts = make([]*codec.Layout, len(pl.Types))
	if bare := pl.From.Bare; bare != nil && !bare.IsZero() {
		pl.Bare = make([]expr.BareType, len(pl.Types))
		for i, s := range pl.Types {
			pl.Bare[i], _ = bare.Compile(s, pl.From.Name) // checkBare found no faults
		}
	}
	for i := range pl.Types {
		if err := b.layouts(i); err != nil {
			return err
		}
		if pl.Layouts[i] = pl.Sections[i][0].Layout; pl.Bare != nil {
			if err := pl.Bare[i].Bind(pl.Layouts[i]); err != nil {
				return err
			}
		}
	}
	for at, s := range pl.Stages {
		if up, ok := s.Built.(stage.Upcaster); ok {
			if err := b.bindOld(up); err != nil {
				return fmt.Errorf("stage %s: %w", s.Name, err)
			}
		}
		if r, ok := s.Built.(stage.Reshaper); ok {
			r.BindReshaped(b.sectionLayouts(func(s stage.Sections) *stage.Section { return s.Arriving(at + 1) }))
		}
		if err := s.Built.Bind(b.sectionLayouts(func(s stage.Sections) *stage.Section { return s.At(at) })); err != nil {
			return fmt.Errorf("stage %s: %w", s.Name, err)
		}
	}
	return nil
}

// layouts makes the layouts of a type.
func (b *builder) layouts(typ int) error {
	sections := b.pipeline.Sections[typ]
	for i := range sections {
		s, end := &sections[i], len(b.pipeline.Stages)
		if i+1 < len(sections) {
			end = sections[i+1].First
		}
		paths := b.usedPaths(typ, b.pipeline.Stages[s.First:end])
		if b.pipeline.Bare != nil && i == 0 {
			paths = append(paths, b.pipeline.Bare[typ].Paths()...)
		}
		if b.from.Bare == nil && i == len(sections)-1 && b.writesCloudEvents(typ) {
			paths = append(paths, []string{"id"}, []string{"timestamp"})
		}
		if i > 0 && !s.Rebuilt {
			if r, ok := b.pipeline.Stages[s.First-1].Built.(stage.Reshaper); ok {
				paths = append(paths, r.ReadsAfter(typ)...)
			}
		}
		var err error
		if s.Layout, err = codec.NewDerivedLayout(s.Base, s.Schema, paths); err != nil {
			return err
		}
	}
	return nil
}

// sectionLayouts returns the layouts of one section of each type.
func (b *builder) sectionLayouts(of func(stage.Sections) *stage.Section) []*codec.Layout {
	out := make([]*codec.Layout, len(b.pipeline.Types))
	for typ := range out {
		out[typ] = of(b.pipeline.Sections[typ]).Layout
	}
	return out
}

// usedPaths returns the fields of a type that stages read or write.
func (b *builder) usedPaths(typ int, stages []Stage) (paths [][]string) {
	for _, s := range stages {
		if s.On[typ] {
			paths = append(paths, s.Built.Reads(typ)...)
			paths = append(paths, s.Built.Writes(typ)...)
		}
	}
	return paths
}

// bindOld adds the older shapes that a stage reads to the plan, and binds the stage to
// their layouts.
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
