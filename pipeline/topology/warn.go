package topology

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/metadata"
	"millrace/pipeline/keyformat"
	"millrace/pipeline/stage"
)

// A Warning reports something that works but is probably unintended.
type Warning struct {
	Fault
	Rule string `json:"rule"` // one of the Rule constants
}

// The rules that a Warning can name.
const (
	RuleUnusedTopic    = "unused-topic"    // nothing reads or writes a topic
	RuleUnusedTable    = "unused-table"    // no stage uses a table
	RuleShortRetention = "short-retention" // Kafka deletes events that a projection needs for a rebuild
	RuleNothingComes   = "nothing-comes"   // a pipeline writes no events, or no events to one of its topics
	RuleOtherKey       = "other-key"       // a projection's key is not the record key of its events
	RuleMixedTimes     = "mixed-times"     // a window reads a topic whose partitions mix events of several partitions
	RuleKeyFormat      = "key-format"      // the ids of aggregates cannot be record keys
	RuleLongDelay      = "long-delay"      // stages delay a transaction longer than the default timeout allows
	RuleTombstones     = "tombstones"      // a pipeline makes the tombstones of a compacted topic dead letters
	RuleInternalTopic  = "internal-topic"  // a projection cannot have its topic of internal records
	// Rules of expressions.
	RuleMaybeNull  = string(expr.RuleNull)
	RuleHiddenName = string(expr.RuleName)
)

// expressionWarnings are the warnings about the expressions of a stage or a fold. types
// are the names of the types that it handles.
type expressionWarnings struct {
	list  []expr.Fault
	types []string
}

// Warnings returns the warnings in the order of the file.
func (t *Topology) Warnings() []Warning { return t.warnings }

// warn collects the warnings. It needs a complete plan without faults.
func (l *loader) warn(args stage.Args) {
	uses := l.uses()
	for _, t := range l.plan.Topics {
		if have := l.topics[t.Name]; !uses[t] {
			l.warning(RuleUnusedTopic, have.name, "remove the topic, or use it", "nothing reads or writes topic %s", t.Name)
		}
	}
	l.warnTables(args)
	l.warnInternal()
	l.warnRetention()
	l.warnKeys()
	l.warnWindows()
	l.warnExpressions()
	for _, p := range l.pipelines {
		l.warnPipeline(p)
	}
	slices.SortStableFunc(l.plan.warnings, func(a, b Warning) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Col - b.Col
	})
}

// internalTopic matches what follows the name of a snapshots topic in the names of the topics
// that a projector makes for the versions of a projection.
var internalTopic = regexp.MustCompile(`^(\.v[1-9][0-9]*)?\.internal$`)

// warnInternal warns of projections whose versions cannot have their topics: a declared topic
// has the name, or the name would be too long. Version 99 has the longest name that is checked.
func (l *loader) warnInternal() {
	for _, p := range l.plan.Projections {
		snapshots := l.topics[p.Snapshots.Name]
		if longest := snapshots.Name + ".v99.internal"; !topicName.MatchString(longest) {
			l.warning(RuleInternalTopic, snapshots.name, fmt.Sprintf("use a name of at most %d characters", 249-len(".v99.internal")),
				"the name of the snapshots topic of projection %s is too long: its versions have topics such as %s", p.Name, longest)
		}
		for _, t := range l.plan.Topics {
			if rest, ok := strings.CutPrefix(t.Name, p.Snapshots.Name); ok && internalTopic.MatchString(rest) {
				l.warning(RuleInternalTopic, l.topics[t.Name].name, "give the topic another name", "versions of projection %s have internal records on topics with such names, so they cannot use %s", p.Name, t.Name)
			}
		}
	}
}

func (l *loader) warning(rule string, at expr.Source, hint, format string, args ...any) {
	f := Fault{File: l.name, Line: at.Line, Col: at.Col, Msg: fmt.Sprintf(format, args...), Hint: hint}
	if at.Line >= 1 && at.Line <= len(l.lines) {
		f.Text = l.lines[at.Line-1]
	}
	l.plan.warnings = append(l.plan.warnings, Warning{f, rule})
}

// warnExpressions warns of expressions that fail for some events, or that do not mean
// what they seem to.
func (l *loader) warnExpressions() {
	for _, w := range l.warns {
		for _, g := range l.group(w.list, w.types) {
			l.warning(string(g.Rule), expr.Source{Line: g.at.Line, Col: g.at.Col}, g.Hint, "%s", g.Msg)
		}
	}
}

// uses returns the topics that the plan reads or writes.
func (l *loader) uses() map[*Topic]bool {
	used := map[*Topic]bool{}
	for _, p := range l.plan.Pipelines {
		used[p.From], used[p.DeadLetter], used[p.Receipts] = true, true, true
		for _, t := range p.Writes() {
			used[t] = true
		}
	}
	for _, p := range l.plan.Projections {
		used[p.From], used[p.Snapshots] = true, true
		if p.Late != nil {
			used[p.Late] = true
		}
	}
	if l.plan.Encryption != nil {
		used[l.plan.Encryption.Keys] = true
	}
	for _, t := range l.plan.Tables {
		if t.Topic != nil {
			used[t.Topic] = true
		}
	}
	return used
}

// warnTables warns of tables that no stage names.
func (l *loader) warnTables(args stage.Args) {
	named := map[string]bool{}
	for _, p := range l.pipelines {
		stages, _ := p.args.Find("stages")
		for _, item := range stages.Items {
			for _, one := range item.Args {
				if arg, ok := one.Items[0].Args.Find("table"); ok {
					named[arg.Value.Text] = true
				}
			}
		}
	}
	tables, _ := args.Find("tables")
	for _, t := range tables.Items {
		if !named[t.Key.Text] {
			l.warning(RuleUnusedTable, t.Key, "remove the table: every worker reads all of its rows and keeps them in memory", "no stage uses table %s", t.Key.Text)
		}
	}
}

// warnRetention warns of projections whose events Kafka deletes, because such a
// projection cannot be rebuilt. An explicit retention time or size is taken as
// intended.
func (l *loader) warnRetention() {
	seen := map[*Topic]bool{}
	for _, d := range l.projections {
		p := d.projection
		if p.From == nil || seen[p.From] {
			continue
		}
		seen[p.From] = true
		from, _ := d.args.Find("from")
		switch policy := p.From.Config["cleanup.policy"]; {
		case strings.Contains(policy, "compact"):
			l.warning(RuleShortRetention, from.Value, "fold a topic that is not compacted", "%s is compacted, so Kafka keeps only the newest event of each key, but %s needs all events", p.From.Name, d.what)
		case p.From.Config["retention.ms"] == "" && p.From.Config["retention.bytes"] == "":
			l.warning(RuleShortRetention, from.Value, `set config: {retention.ms: "-1"} on the topic, or an explicit time`,
				"%s sets no retention, so the brokers' default applies (usually 7 days); %s cannot be rebuilt from deleted events", p.From.Name, d.what)
		}
	}
}

// keying is one way in which records get their key: the path or expression of the
// key, and the part of the system that sets it ("the producer").
type keying struct{ key, by string }

// envelopeKey is the path of the record key that Millrace's producer sets.
const envelopeKey = "data.id"

// keyings returns the keys of the records of a type on a topic: one for each way in
// which such records get there. Unknown keys are left out.
func (l *loader) keyings(t *Topic, typ string) (out []keying) {
	written := false
	for _, d := range l.pipelines {
		p := d.pipeline
		i := slices.IndexFunc(p.Types, func(s *codec.Schema) bool { return s.Name() == typ })
		if i < 0 || i >= len(p.Targets) || !slices.Contains(p.Targets[i], t) {
			written = written || slices.Contains(p.Writes(), t)
			continue
		}
		written = true
		if key, stage := l.rekeyed(d, i); stage != "" {
			out = append(out, keying{key, fmt.Sprintf("stage %s of %s", stage, d.what)})
			continue
		}
		out = append(out, l.keyings(p.From, typ)...)
	}
	if written {
		return out
	}
	if t.Bare == nil {
		return []keying{{envelopeKey, theProducer}}
	}
	return nil
}

// theProducer keys by envelopeKey, unless the topic has Avro keys: their schema says what
// they are.
const theProducer = "the producer"

// rekeyed returns the key that the last rekey stage of a pipeline sets for events of
// a type, and the name of that stage. The name is "" if there is none.
func (l *loader) rekeyed(d *declared, typ int) (key, name string) {
	items, _ := d.args.Find("stages")
	for i, s := range d.pipeline.Stages {
		if s.Kind.Name != "rekey" || !s.On[typ] || i >= len(items.Items) {
			continue
		}
		if arg, ok := items.Items[i].Args[0].Items[0].Args.Find("key"); ok {
			key, name = arg.Value.Text, s.Name
		}
	}
	return key, name
}

// warnKeys warns of projections whose key is not the record key of their events.
// The events of an aggregate are then spread over partitions and cannot be folded.
func (l *loader) warnKeys() {
	for _, d := range l.projections {
		p := d.projection
		l.warnKeyFormat(d)
		key, ok := d.args.Find("key")
		if p.From == nil || p.Fold == nil || !ok || p.Fold.AnyPartition() {
			continue
		}
		reported := map[keying]bool{}
		for i, s := range p.From.Types {
			if !p.Fold.Folds(i) {
				continue
			}
			for _, have := range l.keyings(p.From, s.Name()) {
				if fieldOf(have.key) == fieldOf(key.Value.Text) || reported[have] || have.by == theProducer && p.From.KeyFormat.Kind == keyformat.Avro {
					continue
				}
				reported[have] = true
				l.warning(RuleOtherKey, key.Value, fmt.Sprintf("add a pipeline with the stage rekey: {key: %s}, and fold the topic that it writes", key.Value.Text),
					"%s folds by %s, but %s keys the events on %s by %s: the events of an aggregate are spread over several partitions, and an event in the wrong partition is not folded",
					d.what, key.Value.Text, have.by, p.From.Name, have.key)
			}
		}
	}
}

// defaultTransactionTimeout is the default of the flag --transaction-timeout of workers.
const defaultTransactionTimeout = 10 * time.Second

// warnKeyFormat warns of a projection whose aggregate ids cannot be the text forms of
// record keys: then every event counts as misplaced.
func (l *loader) warnKeyFormat(d *declared) {
	p, from := d.projection, d.projection.From
	if from == nil || p.Fold == nil || from.KeyFormat.IsText() || p.Fold.AnyPartition() {
		return
	}
	path, at := keyPath(d)
	if path == nil {
		return // the id is the key, or an expression that may give it
	}
	for i, s := range from.Types {
		if !p.Fold.Folds(i) {
			continue
		}
		_, err := keyformat.NewMaker(from.KeyFormat, from.Name, s, path)
		if k := from.KeyFormat.Schema; k != nil && k.Root().Kind == codec.Record && len(k.Root().Fields) != 1 {
			err = fmt.Errorf("a key has %d fields, so its text form is a JSON object", len(k.Root().Fields))
		}
		if err != nil {
			l.warning(RuleKeyFormat, at, "if all events of an aggregate have the same key, set partitioner: other on the projection; otherwise rekey them in a pipeline, and fold the topic that it writes",
				"the keys on %s are %s, and %s of %s is never the text form of one, so all events count as misplaced: %v", from.Name, from.KeyFormat, strings.Join(path, "."), s.Name(), err)
			return
		}
	}
}

// keyPath returns the path of the aggregate id in the events of a projection, and where it
// is written. It is nil if the id is the record key or the value of an expression.
func keyPath(d *declared) ([]string, expr.Source) {
	from, _ := d.args.Find("from")
	text, at := "", from.Value
	if key, ok := d.args.Find("key"); ok {
		text, at = key.Value.Text, key.Value
	} else if b := d.projection.From.Bare; b != nil {
		text = b.Key.Text
	}
	text = strings.TrimSpace(text)
	if inner, ok := strings.CutPrefix(text, "string("); ok {
		text = strings.TrimSuffix(inner, ")")
	}
	path := strings.Split(fieldOf(text), ".")
	if metadata.IsName(path[0]) && !slices.ContainsFunc(d.projection.From.Types, func(s *codec.Schema) bool { return s.Root().Field(path[0]) != nil }) {
		return nil, at
	}
	if slices.ContainsFunc(path, func(name string) bool { return !isName(name) }) {
		return nil, at
	}
	return path, at
}

// fieldOf returns the path of a field without the name of the event.
func fieldOf(path string) string { return strings.TrimPrefix(path, "event.") }

// isName reports whether a text is a name of Avro.
func isName(text string) bool {
	return text != "" && strings.IndexFunc(text, func(r rune) bool {
		return r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) < 0
}

// warnPipeline warns of a pipeline, or of one of its topics, that no event reaches.
func (l *loader) warnPipeline(d *declared) {
	p := d.pipeline
	var delay time.Duration
	for _, s := range p.Stages {
		if waits, ok := s.Built.(stage.Delayer); ok {
			delay += waits.MaxDelay()
		}
	}
	if p.Guarantee == ExactlyOnce && delay > defaultTransactionTimeout/2 {
		l.warning(RuleLongDelay, d.name, fmt.Sprintf("run workers with --transaction-timeout %v or more, or let the stages wait less", 2*delay),
			"the stages of %s may delay a transaction by %v, and workers with the default --transaction-timeout (%v) refuse to start", d.what, delay, defaultTransactionTimeout)
	}
	if d.passesNone != "" {
		from, _ := d.args.Find("from")
		l.warning(RuleTombstones, from.Value, "set tombstone: ignore or dead_letter on "+p.From.Name+", or key and route the events without their values",
			"%s is compacted, so it can have tombstones, but %s cannot pass them: %s needs the value. They become dead letters", p.From.Name, d.what, d.passesNone)
	}
	if !slices.Contains(p.Emits, true) {
		l.warning(RuleNothingComes, d.name, "", "%s writes no events: its stages let none pass", d.what)
		return
	}
	for _, t := range p.Writes() {
		reached := slices.ContainsFunc(p.Targets, func(targets []*Topic) bool { return slices.Contains(targets, t) })
		if reached {
			continue
		}
		i := slices.IndexFunc(d.targets, func(have target) bool { return have.Topic == t })
		l.warning(RuleNothingComes, d.targets[i].at, "set to: to one of the topics that events are routed to", "%s writes no events to %s: all of them are routed elsewhere", d.what, t.Name)
	}
}
