package deploy

import (
	"fmt"
	"slices"
	"strings"

	"millrace/pipeline/cli"
)

// An editKind is the kind of an edit that a plan refuses. The name of such an edit is
// the kind, a colon and the name of the edited part.
type editKind string

const (
	editConfig            editKind = "config"             // a topic's setting makes brokers delete records
	editRecreated         editKind = "recreated"          // a source topic is not the one that was applied
	editPartitionsChanged editKind = "partitions-changed" // a source topic got more partitions
	editOrphanedState     editKind = "orphaned-state"     // no stage uses a state topic any more
	editRemoved           editKind = "removed"            // a pipeline was removed before it read everything
	editFrom              editKind = "from"               // a pipeline reads another topic
	editGuarantee         editKind = "guarantee"          // a pipeline gives up exactly_once
	editState             editKind = "state"              // the state of a stage is of no use any more
	editMask              editKind = "mask"               // masked values are not the same any more
	editKey               editKind = "key"                // events of one aggregate get another key
	editKeys              editKind = "keys"               // encrypted fields become unreadable
	editRewritten         editKind = "rewritten"          // a renamed pipeline writes everything again
	editProjection        editKind = "projection"         // a projection is removed, or begins again
	editDelay             editKind = "delay"              // workers with this --transaction-timeout refuse to start

	// Edits that cannot be allowed, because they could not work.
	editHidden     editKind = "topic"      // a topic cannot be described
	editPartitions editKind = "partitions" // a topic has another number of partitions
	editCreate     editKind = "create"     // a topic cannot be created
	editSchema     editKind = "schema"     // a schema is incompatible
)

// allowableEdits lists the kinds of edits that --allow accepts, and the form of the
// name after the colon.
var allowableEdits = []struct {
	kind editKind
	form string
}{
	{editConfig, "TOPIC/SETTING"},
	{editDelay, "PIPELINE"},
	{editFrom, "PIPELINE"},
	{editGuarantee, "PIPELINE"},
	{editKey, "PIPELINE/STAGE/key"},
	{editKeys, "encryption/key_topic"},
	{editMask, "PIPELINE/STAGE/PARAMETER"},
	{editOrphanedState, "PIPELINE/STAGE"},
	{editPartitionsChanged, "TOPIC"},
	{editRecreated, "TOPIC"},
	{editProjection, "PROJECTION"},
	{editRemoved, "PIPELINE"},
	{editRewritten, "PIPELINE"},
	{editState, "PIPELINE/STAGE/PARAMETER"},
}

// allowable reports whether --allow accepts edits of this kind.
func (k editKind) allowable() bool {
	for _, a := range allowableEdits {
		if a.kind == k {
			return true
		}
	}
	return false
}

// checkAllow checks the form of the values of --allow. A well-formed name that the
// plan does not refuse is no fault: after a successful apply nothing is refused any
// more, and the same command line must still work.
func checkAllow(names []string) error {
	never := []editKind{editHidden, editPartitions, editCreate, editSchema}
	for _, name := range names {
		kind, part, _ := strings.Cut(name, ":")
		if k := editKind(kind); part != "" && (k.allowable() || slices.Contains(never, k)) {
			continue
		}
		forms := make([]string, len(allowableEdits))
		for i, a := range allowableEdits {
			forms[i] = string(a.kind) + ":" + a.form
		}
		return cli.Usagef("--allow: %q is not the name of an edit; plan shows the names of refused edits, which have the forms %s", name, strings.Join(forms, ", "))
	}
	return nil
}

// A refusal is an edit that is unsafe or could not work.
type refusal struct {
	Name      string `json:"name"` // for --allow
	Why       string `json:"why"`
	Hint      string `json:"hint"` // what to do, as an imperative
	Allowable bool   `json:"allowable"`
	Allowed   bool   `json:"allowed"`
}

// refuse refuses the edit kind:name. The format describes the reason.
func (p *plan) refuse(kind editKind, name, hint, format string, args ...any) {
	p.Refused = append(p.Refused, refusal{Name: string(kind) + ":" + name, Hint: hint, Why: fmt.Sprintf(format, args...), Allowable: kind.allowable()})
}

// refused reports whether the plan has refused edits that are not allowed.
func (p *plan) refused() bool {
	return slices.ContainsFunc(p.Refused, func(r refusal) bool { return !r.Allowed })
}

// allow marks the refused edits with these names as allowed, and notes the names
// without effect.
func (p *plan) allow(names []string) {
	for i := range p.Refused {
		r := &p.Refused[i]
		r.Allowed = r.Allowable && slices.Contains(names, r.Name)
	}
	for _, name := range names {
		i := slices.IndexFunc(p.Refused, func(r refusal) bool { return r.Name == name })
		switch {
		case i < 0:
			p.note("allow", "no refused edit has the name %s", name)
		case !p.Refused[i].Allowable:
			p.note("allow", "%s cannot be allowed: it would not work", name)
		}
	}
}
