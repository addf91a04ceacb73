package topology

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/fold"
	"millrace/pipeline/stage"
)

// declareProjection adds a projection to the plan, and its topic of snapshots if
// that is not declared. buildProjection compiles its fold later.
func (l *loader) declareProjection(item stage.Item) {
	p := &declared{name: item.Key, args: item.Args, what: "projection " + item.Key.Text, projection: &Projection{Name: item.Key.Text}}
	l.checkName("projection", item.Key)
	l.projections = append(l.projections, p)
	l.plan.Projections = append(l.plan.Projections, p.projection)
	from, at := l.find(p.args, "from")
	if from != nil && l.claim(from, at.Value, asEvents) {
		p.projection.From = from.Topic
	}
	if _, ok := p.args.Find("late"); ok {
		if late, at := l.find(p.args, "late"); late != nil && l.claim(late, at.Value, asDeadLetters) {
			p.projection.Late = late.Topic
		}
	}
	if arg, ok := p.args.Find("snapshots"); ok {
		l.declareSnapshots(p, from, arg.Value)
	}
}

// declareSnapshots gives a projection its topic of snapshots. from is the topic that
// it folds, nil if that is unknown.
func (l *loader) declareSnapshots(p *declared, from *topic, name expr.Source) {
	t := l.topics[name.Text]
	if t == nil {
		if !l.checkTopicName(name) {
			return
		}
		t = &topic{Topic: &Topic{Name: name.Text, Config: map[string]string{"cleanup.policy": "compact"}}, name: name}
		if from != nil {
			t.Partitions, t.Replication = from.Partitions, from.Replication
		}
		l.topics[name.Text] = t
		l.plan.Topics = append(l.plan.Topics, t.Topic)
	} else if t.Snapshots == nil && t.holds == "" {
		l.checkSnapshots(t, from, name)
	}
	if t.Snapshots != nil {
		l.at(name, "use a separate topic for each", "%s already holds the snapshots of projection %s", name.Text, t.Snapshots.Name)
		return
	}
	if l.claim(t, name, "the snapshots of "+p.what) {
		t.Snapshots, p.projection.Snapshots = p.projection, t.Topic
	}
}

// checkSnapshots checks a declared topic for snapshots.
func (l *loader) checkSnapshots(t, from *topic, at expr.Source) {
	if t.typed {
		l.at(at, "remove types from the topic", "%s declares event types, so it cannot hold snapshots", t.Name)
	}
	if from != nil && t.Partitions > 0 && from.Partitions > 0 && t.Partitions != from.Partitions {
		l.at(at, fmt.Sprintf("give both the same number, or remove %s from topics", t.Name),
			"%s has %d partitions and %s has %d: a snapshot must be in the same partition as its events", t.Name, t.Partitions, from.Name, from.Partitions)
	}
	l.compact(t, at, "current snapshots")
}

// buildProjection compiles the fold of a projection. The types of its topic are
// known by now.
func (l *loader) buildProjection(p *declared) {
	if p.projection.From == nil {
		return
	}
	from := l.topics[p.projection.From.Name]
	l.settleIdentity(from)
	if len(from.Types) == 0 {
		l.untyped(from, p)
		return
	}
	stateArg, ok := p.args.Find("state")
	key, keyed := p.args.Find("key")
	on, hasOn := p.args.Find("on")
	if !keyed && from.Bare == nil {
		l.at(p.name, "add key: PATH, the path of the aggregate's id in every event type under on", "%s has no key", p.what)
		return
	}
	if !ok || !hasOn || !l.checkBare(from) {
		return
	}
	state, msg, hint := l.schemas.find(stateArg.Value.Text)
	if state == nil {
		if msg != "" {
			l.at(stateArg.Value, hint, "%s", msg)
		}
		return
	}
	if len(on.Items) == 0 {
		l.at(on.Key, "write on: {TYPE: {set: {FIELD: EXPRESSION}}}", "%s has no effect: on is empty", p.what)
	}
	spec := fold.Spec{Name: p.name.Text, Types: from.Types, Key: key.Value, Bare: from.Bare, State: state, Identity: from.Identity, Keys: from.KeyFormat, Partitioner: from.Partitioner}
	if !keyed {
		spec.Key = expr.Source{Line: p.name.Line, Col: p.name.Col} // a place for faults
	}
	if !l.foldOptions(p, &spec) {
		return
	}
	spec.Tombstones, spec.UnusualTombstones = foldTombstones(from.Topic)
	p.projection.Publish = l.publish(p)
	spec.On = l.foldTypes(on, from)
	l.compileFold(p, spec, stateArg.Value)
}

// foldOptions reads the parameters of a projection that have a default. It returns
// false if the windows are faulty.
func (l *loader) foldOptions(p *declared, spec *fold.Spec) (ok bool) {
	if arg, ok := p.args.Find("max_state"); ok {
		spec.MaxState = int(arg.Number)
	}
	if arg, ok := p.args.Find("partitioner"); ok {
		spec.AnyPartition = arg.Value.Text == partitionerOther
	}
	if arg, ok := p.args.Find("duplicates"); ok {
		spec.PartitionIDs = arg.Value.Text == duplicatesPartition
	}
	if arg, ok := p.args.Find("wait"); ok {
		spec.Wait = arg.Number
	}
	if arg, ok := p.args.Find("on_gap"); ok {
		spec.ApplyGap = arg.Value.Text == onGapApply
	}
	spec.Window, ok = l.window(p)
	return ok
}

// foldTypes reads the effects of the event types under on. Types with faults are
// left out.
func (l *loader) foldTypes(on stage.Arg, from *topic) (out []fold.On) {
	seen := map[int]expr.Source{}
	for _, item := range on.Items {
		i := l.typeOf(item.Key, from.Types, from)
		if i < 0 {
			continue
		}
		if first, twice := seen[i]; twice {
			l.at(item.Key, "remove one of them", duplicate, item.Key.Text, first.Line, first.Col)
			continue
		}
		seen[i] = item.Key
		rules, several := item.Args.Find("rules")
		if !several {
			out = append(out, foldRule(i, item.Key, item.Args))
			continue
		}
		for _, name := range []string{"when", "set", "delete"} {
			if arg, ok := item.Args.Find(name); ok {
				l.at(arg.Key, "move it into a rule", "%s has rules, so %s beside them has no meaning", item.Key.Text, name)
			}
		}
		if len(rules.Items) == 0 {
			l.at(rules.Key, "write rules: [{when: EXPRESSION, set: {FIELD: EXPRESSION}}]", "rules is empty")
		}
		for _, one := range rules.Items {
			out = append(out, foldRule(i, one.Key, one.Args))
		}
	}
	return out
}

// foldTombstones returns what a tombstone on a topic means for a projection, and whether
// that is not the default.
func foldTombstones(from *Topic) (mode fold.Tombstones, unusual bool) {
	usual := TombstoneDeadLetter
	if strings.Contains(from.Config["cleanup.policy"], "compact") {
		usual = TombstoneDelete
	}
	switch from.Tombstone {
	case TombstoneDelete:
		mode = fold.DeleteByTombstones
	case TombstonePass, TombstoneIgnore:
		mode = fold.IgnoreTombstones
	}
	return mode, from.Tombstone != usual
}

// foldRule reads a rule of the type with the index typ. at is its place.
func foldRule(typ int, at expr.Source, args stage.Args) fold.On {
	one := fold.On{Type: typ, When: expr.Source{Line: at.Line, Col: at.Col}}
	if arg, ok := args.Find("when"); ok {
		one.When = arg.Value
	}
	if arg, ok := args.Find("delete"); ok {
		switch arg.Value.Text {
		case "true", "false":
			one.Delete = arg.Value.Text == "true"
		default:
			one.DeleteIf = arg.Value
		}
	}
	if arg, ok := args.Find("revive"); ok {
		one.Revive = arg.Flag
	}
	set, _ := args.Find("set")
	for _, e := range set.Entries {
		one.Set = append(one.Set, fold.Set{Field: e.Key, Value: e.Value})
	}
	return one
}

// compileFold compiles the fold of a projection. state is the place of the state's
// name.
func (l *loader) compileFold(p *declared, spec fold.Spec, state expr.Source) {
	spec.Semantics = l.o.Semantics
	f, faults := fold.Compile(spec)
	for i := range faults {
		if faults[i].Source == spec.Key && faults[i].Type == "" {
			faults[i].Source = state // without a type, it is a fault of the state
		}
	}
	var folded []string
	for _, o := range spec.On {
		if name := typeNames(spec.Types)[o.Type]; !slices.Contains(folded, name) {
			folded = append(folded, name)
		}
	}
	l.grouped(faults, folded)
	p.projection.Fold = f
	if f != nil {
		l.warns = append(l.warns, expressionWarnings{f.Warnings(), folded})
	}
	if f != nil && p.projection.Snapshots != nil {
		p.projection.Snapshots.Types = []*codec.Schema{f.Snapshot()}
	}
}

// window reads the windows of a projection. ok is false if they have faults.
func (l *loader) window(p *declared) (w fold.Window, ok bool) {
	before := len(l.faults)
	arg, has := p.args.Find("window")
	if !has {
		for _, name := range []string{"keep", "late"} {
			if arg, ok := p.args.Find(name); ok {
				l.at(arg.Key, "add a window, or remove "+name, "%s has no window, so %s has no meaning", p.what, name)
			}
		}
		if arg, _ := p.args.Find("grace"); arg.Duration > 0 {
			l.at(arg.Key, "add a window, or remove grace", "%s has no window, so grace has no meaning", p.what)
		}
		return w, len(l.faults) == before
	}
	w, every := l.windowSize(arg)
	if len(l.faults) > before {
		return w, false
	}
	switch {
	case w.Size < time.Millisecond || w.Every < time.Millisecond:
		l.at(arg.Key, "", "windows must be at least 1ms long and start at least 1ms apart")
	case w.Every > w.Size:
		l.at(every, fmt.Sprintf("use at most %s", w.Size), "every is longer than the windows, so some events would be in no window")
	case w.Size/w.Every > fold.MaxOverlap:
		l.at(every, fmt.Sprintf("use at least %s", w.Size/fold.MaxOverlap), "an event would be in more than %d windows", fold.MaxOverlap)
	}
	if arg, ok := p.args.Find("grace"); ok {
		w.Grace = arg.Duration
	}
	if arg, ok := p.args.Find("keep"); ok {
		if w.Retention = arg.Duration; w.Retention < w.Grace {
			l.at(arg.Value, fmt.Sprintf("use at least %s", w.Grace), "keep is shorter than grace (%s): states would be deleted while their windows still accept events", w.Grace)
		}
	}
	return w, len(l.faults) == before
}

// windowSize reads the length of windows and the time between their starts. every is
// the place of the parameter of that name.
func (l *loader) windowSize(window stage.Arg) (w fold.Window, every expr.Source) {
	args := window.Items[0].Args
	tumbling, tumbles := args.Find("tumbling")
	hopping, hops := args.Find("hopping")
	hop, overlaps := args.Find("every")
	switch {
	case tumbles == hops:
		l.at(window.Key, "write window: {tumbling: 1h}, or window: {hopping: 1h, every: 10m}", "a window must be either tumbling or hopping")
	case tumbles && overlaps:
		l.at(hop.Key, "remove every, or use hopping", "tumbling windows have no every: each starts at the end of the one before")
	case tumbles:
		w.Size, w.Every = tumbling.Duration, tumbling.Duration
	case !overlaps:
		l.at(hopping.Key, "write window: {hopping: 1h, every: 10m}", "hopping windows need every")
	default:
		w.Size, w.Every = hopping.Duration, hop.Duration
	}
	return w, hop.Key
}

// publish reads when a projection publishes.
func (l *loader) publish(p *declared) (out Publish) {
	arg, ok := p.args.Find("publish")
	if !ok || len(arg.Items) == 0 {
		return out
	}
	args := arg.Items[0].Args
	if len(args) != 1 {
		l.at(arg.Key, "write publish: every, {events: 1000}, {every: 10s} or {recovery: 10s}", "publish needs exactly one rule")
		return out
	}
	switch args[0].Name {
	case "events":
		out.Events = args[0].Number
	case "every":
		out.Every = args[0].Duration
	case "recovery":
		out.Recovery = args[0].Duration
	}
	return out
}
