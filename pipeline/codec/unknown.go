package codec

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	unknownShown = 10 * time.Minute // after the registry last said that it lacks a schema
	unknownMost  = 1000             // schemas that are remembered as unknown
	unknownNamed = 5                // schemas in a message
	waitingShown = time.Second      // before a request is mentioned
)

// Missing describes the schemas that the registry does not give.
type Missing struct {
	// Unknown are the schemas that the registry did not have when a record last used
	// them, in the last ten minutes; at most 1,000, in the order of their ids.
	Unknown []SchemaRef

	// Waiting are the schemas that the registry has been asked for, for longer than a
	// second.
	Waiting []SchemaRef

	where string
}

// Missing returns the schemas that the registry does not give.
func (r *Registry) Missing() Missing {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, out := r.now(), Missing{where: r.where}
	for ref, last := range r.unknown {
		if now.Sub(last) < unknownShown {
			out.Unknown = append(out.Unknown, ref)
		} else {
			delete(r.unknown, ref)
		}
	}
	for ref, q := range r.inFlight {
		if now.Sub(q.began) > waitingShown {
			out.Waiting = append(out.Waiting, ref)
		}
	}
	slices.SortFunc(out.Unknown, compareRefs)
	slices.SortFunc(out.Waiting, compareRefs)
	return out
}

// Err returns an error that names the schemas, nil if there are none.
func (m Missing) Err() error {
	var parts []string
	if len(m.Unknown) > 0 {
		parts = append(parts, fmt.Sprintf("the registry at %s has no schema %s; records with it are rejected as unknown_schema: were they written with another registry?", m.where, named(m.Unknown)))
	}
	if len(m.Waiting) > 0 {
		parts = append(parts, fmt.Sprintf("waiting for the registry at %s to answer for schema %s", m.where, named(m.Waiting)))
	}
	if parts == nil {
		return nil
	}
	return fmt.Errorf("%s", strings.Join(parts, "; "))
}

// named names the first of the schemas, and counts the others.
func named(refs []SchemaRef) string {
	var names []string
	for _, ref := range refs[:min(len(refs), unknownNamed)] {
		names = append(names, ref.String())
	}
	out := strings.Join(names, ", ")
	if more := len(refs) - len(names); more > 0 {
		out += fmt.Sprintf(" and %d more", more)
	}
	return out
}

func compareRefs(a, b SchemaRef) int {
	return cmp.Or(cmp.Compare(a.ID, b.ID), slices.Compare(a.GUID[:], b.GUID[:]))
}

// noteUnknown remembers that the registry does not have a schema. If too many are
// remembered, it forgets those that were noted long ago, or else this one: they are many
// anyway. The caller holds mu.
func (r *Registry) noteUnknown(ref SchemaRef) {
	now := r.now()
	if _, ok := r.unknown[ref]; !ok && len(r.unknown) >= unknownMost {
		for old, last := range r.unknown {
			if now.Sub(last) >= unknownShown {
				delete(r.unknown, old)
			}
		}
		if len(r.unknown) >= unknownMost {
			return
		}
	}
	r.unknown[ref] = now
}
