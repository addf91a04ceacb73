package receipt

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"millrace/pipeline/projector/query"
	"millrace/pipeline/topology"
)

// Upstream is the graph of pipelines through which events come to a topic: the
// pipelines that write it, those that write their inputs, and so on. A nil Upstream has
// no pipelines.
type Upstream struct {
	topic   *topology.Topic
	writers map[*topology.Topic][]*topology.Pipeline
	all     []*topology.Pipeline
	roots   map[*topology.Pipeline][]*topology.Topic // the topics without writers that a pipeline's events come from
	known   *Reader
}

// NewUpstream returns the pipelines upstream of a topic, with their receipts.
func NewUpstream(t *topology.Topology, topic *topology.Topic, known *Reader) *Upstream {
	u := &Upstream{topic: topic, writers: map[*topology.Topic][]*topology.Pipeline{}, roots: map[*topology.Pipeline][]*topology.Topic{}, known: known}
	var visit func(to *topology.Topic) (roots []*topology.Topic)
	visit = func(to *topology.Topic) (roots []*topology.Topic) {
		for _, p := range t.Pipelines {
			if !writes(p, to) {
				continue
			}
			u.writers[to] = append(u.writers[to], p)
			if _, seen := u.roots[p]; !seen {
				u.all = append(u.all, p)
				u.roots[p] = visit(p.From)
			}
			roots = append(roots, u.roots[p]...)
		}
		if len(u.writers[to]) == 0 {
			return []*topology.Topic{to}
		}
		return roots
	}
	visit(topic)
	for topic, ps := range u.writers {
		u.writers[topic] = unique(ps) // a topic may be visited more than once
	}
	return u
}

// unique returns the elements without repetitions, in their order.
func unique[T comparable](all []T) (out []T) {
	for _, one := range all {
		if !slices.Contains(out, one) {
			out = append(out, one)
		}
	}
	return out
}

// writes reports whether a pipeline may write a topic. It compares names: the topic may
// come from another copy of the topology.
func writes(p *topology.Pipeline, to *topology.Topic) bool {
	is := func(t *topology.Topic) bool { return t.Name == to.Name }
	return is(p.To) || slices.ContainsFunc(p.Targets, func(targets []*topology.Topic) bool { return slices.ContainsFunc(targets, is) })
}

// Topics returns the receipts topics of the pipelines upstream of the projections.
func Topics(t *topology.Topology) (topics []*topology.Topic) {
	for _, pr := range t.Projections {
		for _, p := range NewUpstream(t, pr.From, nil).all {
			if p.Receipts != nil {
				topics = append(topics, p.Receipts)
			}
		}
	}
	return unique(topics)
}

// Outcome returns the outcome of an event that cannot reach the topic, by its receipts.
// If several ways lead to the topic, each of them must be blocked; otherwise ok is
// false.
func (u *Upstream) Outcome(eventID string) (out query.Outcome, ok bool) {
	if u == nil || len(u.known.topics) == 0 {
		return out, false
	}
	receipts := map[*topology.Pipeline]Receipt{}
	from := map[*topology.Topic]bool{} // the roots that the event may have come from
	for _, p := range u.all {
		if p.Receipts == nil {
			continue
		}
		if r, ok := u.known.of(eventID, p.Name); ok {
			receipts[p] = r
			for _, root := range u.roots[p] {
				from[root] = true
			}
		}
	}
	if len(receipts) == 0 || !u.blocked(u.topic, receipts, from) {
		return out, false
	}
	var texts []string
	for _, p := range u.all {
		r, ok := receipts[p]
		if !ok {
			continue
		}
		texts = append(texts, r.text())
		out.Open = out.Open || r.Duplicate
		state := query.Filtered
		if r.Outcome == OutcomeDeadLetter {
			state = query.DeadLetter
		}
		if out.State == "" || out.State == query.Filtered && state == query.DeadLetter {
			out.State, out.Pipeline, out.Stage, out.Reason = state, r.Pipeline, r.Stage, string(r.Reason)
		}
	}
	out.Detail = strings.Join(texts, "; ")
	if out.Open {
		out.Detail += ". If the first event was a copy of this one, the copy may still arrive: ask again"
	}
	return out, true
}

// blocked reports whether receipts block every way of the event to a topic.
func (u *Upstream) blocked(to *topology.Topic, receipts map[*topology.Pipeline]Receipt, from map[*topology.Topic]bool) bool {
	ways := 0
	for _, p := range u.writers[to] {
		if !slices.ContainsFunc(u.roots[p], func(root *topology.Topic) bool { return from[root] }) {
			continue // the event cannot have come to this pipeline
		}
		ways++
		if _, ok := receipts[p]; !ok && !u.blocked(p.From, receipts, from) {
			return false
		}
	}
	return ways > 0
}

// Possible describes the possible outcomes of an event that has not reached the topic, ""
// if the topic has no upstream pipeline.
func (u *Upstream) Possible(eventID string) string {
	if u == nil {
		return ""
	}
	var texts []string
	for _, p := range u.all {
		text := "pipeline " + p.Name
		if p.Receipts == nil || len(u.known.topics) == 0 {
			texts = append(texts, text+" may have filtered it, or written it to "+p.DeadLetter.Name)
			continue
		}
		if r, ok := u.known.of(eventID, p.Name); ok {
			texts = append(texts, r.text()+", but it may arrive another way")
			continue
		}
		lag, ok := u.known.lag()
		since := u.known.knownSince()
		text += fmt.Sprintf(" has not reported since %s that it filtered it or wrote it to %s", since.UTC().Format(time.RFC3339), p.DeadLetter.Name)
		if !ok || lag > 0 {
			text += ", as far as its receipts were read"
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, "; ")
}
