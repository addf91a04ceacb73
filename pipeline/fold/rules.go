package fold

import (
	"fmt"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// This file holds the rules of event types: which one applies to an event, and what
// deletes an aggregate or creates it again.

// Tombstones says what a record without a value means.
type Tombstones uint8

// The values of Tombstones.
const (
	RejectTombstones Tombstones = iota // it is no valid event
	IgnoreTombstones
	DeleteByTombstones // it deletes the aggregate of its key; a later event creates it again
)

// rulesOf returns the rules of a type, in order.
func rulesOf(spec Spec, typ int) (rules []On) {
	for _, on := range spec.On {
		if on.Type == typ {
			rules = append(rules, on)
		}
	}
	return rules
}

// compileRules compiles the rules of an event type. It returns the paths of the event
// that they read, and appends those of the state to statePaths.
func (t *typeFold) compileRules(env *expr.Env, spec Spec, rules []On, numbered bool, statePaths *[][]string) (paths [][]string, faults []expr.Fault) {
	condition := func(env *expr.Env, src expr.Source, what string) (p *expr.Program) {
		if src.Text == "" {
			return nil
		}
		p, more := env.CompileAt(src, t.schema.Name(), expr.Condition(what))
		if faults = append(faults, more...); len(more) > 0 {
			return nil
		}
		t.metadata.Add(p.Metadata())
		paths = append(paths, p.Paths(0)...)
		*statePaths = append(*statePaths, p.Paths(1)...)
		return p
	}
	for i, on := range rules {
		r := rule{when: condition(env, on.When, "a when"), deletes: on.Delete, revives: on.Revive}
		applies := env.Also(r.when.Ensures(true))
		r.deleteIf = condition(applies, on.DeleteIf, "a delete")
		read, more := t.compileSets(&r, applies, spec, on.Set, statePaths)
		paths, faults = append(paths, read...), append(faults, more...)
		env = env.Also(r.when.Ensures(false)) // where a later rule applies
		t.rules = append(t.rules, r)
		if on.When.Text == "" && i < len(rules)-1 {
			faults = append(faults, expr.Fault{Source: rules[i+1].When, Type: t.schema.Name(), Msg: fmt.Sprintf("rule %d never applies: rule %d has no condition", i+2, i+1), Hint: "add when to each rule but the last"})
		}
	}
	last := rules[len(rules)-1]
	if numbered && last.When.Text != "" {
		faults = append(faults, expr.Fault{Source: last.When, Type: t.schema.Name(), Msg: fmt.Sprintf("%s has sequence numbers, so an event to which no rule applies would look like a gap", t.schema.Name()),
			Hint: "add a last rule without when; {set: {}} changes nothing but the version"})
	}
	return paths, faults
}

// bindRule resolves the fields of a rule to slots.
func (f *Fold) bindRule(r *rule, event *codec.Layout, on On, typ string) []expr.Fault {
	bind := func(p *expr.Program, src expr.Source) []expr.Fault {
		if p == nil {
			return nil
		}
		if err := p.Bind(event, f.layout); err != nil {
			return expr.PlaceErrors(src, typ, err)
		}
		return nil
	}
	faults := append(bind(r.when, on.When), bind(r.deleteIf, on.DeleteIf)...)
	for i, s := range on.Set {
		r.sets[i].slot = f.layout.Slot(r.sets[i].field.Leaf...)
		faults = append(faults, bind(r.sets[i].value, s.Value)...)
	}
	return faults
}

// choose returns the rule that applies to the event of the last Read, nil if there is
// none. f.state has the state before the event.
func (f *Folder) choose() (*rule, error) {
	t := &f.types[f.typ]
	for i := range t.rules {
		r := &t.rules[i]
		if r.when == nil {
			return r, nil
		}
		if ok, err := r.when.Bool(&f.event, &f.state); ok || err != nil {
			return r, err
		}
	}
	return nil, nil
}

// bury applies the tombstone of the last Read: the aggregate is deleted, and any event
// creates it again.
func (f *Folder) bury(a *Aggregate) Outcome {
	if a.Version == 0 || a.Tombstone {
		return Ignored
	}
	a.EventID, a.EventTime = a.EventID[:0], f.time
	a.Version++
	a.Deleted, a.Tombstone = true, true
	return Applied
}

// Tombstones returns what a record without a value means. A window is never deleted by one.
func (f *Fold) Tombstones() Tombstones { return f.tombstones }

// Resets reports whether an event may set every field of a state to its default, because
// it creates a deleted aggregate again.
func (f *Fold) Resets() bool { return f.revives || f.tombstones == DeleteByTombstones }

// CanRevive reports whether some event may change a deleted aggregate.
func (f *Fold) CanRevive(a *Aggregate) bool { return a.Tombstone || f.revives }
