package topology

import (
	"fmt"
	"slices"
	"strings"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/stage"
)

// A Warning is something that runs, but may not be what was meant.
type Warning struct {
	Fault
	Rule string `json:"rule"` // one of the rules below
}

// The rules of warnings.
const (
	RuleUnusedTopic    = "unused-topic"    // nothing reads or writes it
	RuleUnusedTable    = "unused-table"    // no stage looks into it
	RuleShortRetention = "short-retention" // Kafka deletes events that a projection is made of
	RuleNothingComes   = "nothing-comes"   // a pipeline writes nothing, or nothing to one of its topics
	RuleOtherKey       = "other-key"       // a projection folds by another field than its events are keyed by
)

// Warnings returns what may not be meant, in the order of the file.
func (t *Topology) Warnings() []Warning { return t.warnings }

// warn looks for what may not be meant. The plan is complete and has no faults.
func (l *loader) warn(args stage.Args) {
	uses := l.uses()
	for _, t := range l.plan.Topics {
		if have := l.topics[t.Name]; !uses[t] {
			l.warning(RuleUnusedTopic, have.name, "remove it, or read it", "nothing reads or writes topic %s", t.Name)
		}
	}
	l.warnTables(args)
	l.warnRetention()
	l.warnKeys()
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

func (l *loader) warning(rule string, at expr.Source, hint, format string, args ...any) {
	f := Fault{File: l.name, Line: at.Line, Col: at.Col, Msg: fmt.Sprintf(format, args...), Hint: hint}
	if at.Line >= 1 && at.Line <= len(l.lines) {
		f.Text = l.lines[at.Line-1]
	}
	l.plan.warnings = append(l.plan.warnings, Warning{f, rule})
}

// uses returns the topics that something reads or writes.
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

// warnTables finds tables that no stage names.
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
			l.warning(RuleUnusedTable, t.Key, "remove it: each worker would read all of it and keep it in memory", "no stage looks into table %s", t.Key.Text)
		}
	}
}

// warnRetention finds projections whose events Kafka deletes: they could not be
// built anew. A time or a size that is given counts as meant.
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
			l.warning(RuleShortRetention, from.Value, "fold a topic that is not compacted", "%s is compacted: Kafka keeps the newest event of each key alone, and %s is made of all", p.From.Name, d.what)
		case p.From.Config["retention.ms"] == "" && p.From.Config["retention.bytes"] == "":
			l.warning(RuleShortRetention, from.Value, `give the topic config: {retention.ms: "-1"}, or the time that you mean`,
				"%s does not say how long it keeps events, which is 7 days unless the brokers are told otherwise; %s cannot be built anew from what is gone", p.From.Name, d.what)
		}
	}
}

// keying is what the records of a type are keyed by: a path or an expression, and
// who says so.
type keying struct{ key, by string }

// envelopeKey is the record key that our producers give an event.
const envelopeKey = "data.id"

// keyings returns by what the records of a type on a topic are keyed, one for
// each way in which they come there. What is not known is left out.
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
		return []keying{{envelopeKey, "the producer"}}
	}
	return nil
}

// rekeyed returns the key that the last rekey stage gives events of a type, and
// the stage's name, "" if there is none.
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

// warnKeys finds projections whose key is not what their events are keyed by: the
// events of an aggregate then stand in several partitions, and cannot be folded.
func (l *loader) warnKeys() {
	for _, d := range l.projections {
		p := d.projection
		key, ok := d.args.Find("key")
		if p.From == nil || p.Fold == nil || !ok || p.Fold.AnyPartition() {
			continue
		}
		said := map[keying]bool{}
		for i, s := range p.From.Types {
			if !p.Fold.Folds(i) {
				continue
			}
			for _, have := range l.keyings(p.From, s.Name()) {
				if have.key == key.Value.Text || said[have] {
					continue
				}
				said[have] = true
				l.warning(RuleOtherKey, key.Value, fmt.Sprintf("let a pipeline with the stage rekey: {key: %s} write a topic, and fold that", key.Value.Text),
					"%s folds by %s, but %s keys the events on %s by %s: those of one aggregate stand in several partitions, and what does not stand where its aggregate belongs is not folded",
					d.what, key.Value.Text, have.by, p.From.Name, have.key)
			}
		}
	}
}

// warnPipeline finds topics to which nothing comes.
func (l *loader) warnPipeline(d *declared) {
	p := d.pipeline
	if !slices.Contains(p.Emits, true) {
		l.warning(RuleNothingComes, d.name, "", "nothing comes out of %s: its stages let no event pass", d.what)
		return
	}
	for _, t := range p.Writes() {
		reached := slices.ContainsFunc(p.Targets, func(targets []*Topic) bool { return slices.Contains(targets, t) })
		if reached {
			continue
		}
		i := slices.IndexFunc(d.targets, func(have target) bool { return have.Topic == t })
		l.warning(RuleNothingComes, d.targets[i].at, "let to name one of the topics that events are routed to", "%s writes nothing to %s: what comes out is routed elsewhere", d.what, t.Name)
	}
}
