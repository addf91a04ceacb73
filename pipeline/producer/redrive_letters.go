package producer

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/kafka"
	"millrace/pipeline/topology"
)

// letterFilter decides whether a letter goes back or stays.
type letterFilter struct {
	reasons, stages, pipelines []string
	since                      time.Time
	attempts                   int // a letter with this many failures stays; 0: no limit

	// sources are the topics that letters may go back to, by pipeline. The headers of a
	// letter may be forged.
	sources map[string]string
	// kept are the source topics that get no letter back, because compaction would
	// remove newer records of its key.
	kept map[string]bool
}

// topics returns the dead-letter topics of a topology, and allows letters to go
// back to the topics that its pipelines read.
func (f *letterFilter) topics(t *topology.Topology) (names []string) {
	f.sources = map[string]string{}
	for _, pl := range t.Pipelines {
		f.sources[pl.Name] = pl.From.Name
		if pl.DeadLetter != nil && !slices.Contains(names, pl.DeadLetter.Name) {
			names = append(names, pl.DeadLetter.Name)
		}
	}
	return names
}

// sourceTopics returns the topics that letters may go back to.
func (f *letterFilter) sourceTopics() []string {
	return slices.Compact(slices.Sorted(maps.Values(f.sources)))
}

// keepCompacted sets kept to the compacted source topics.
func (f *letterFilter) keepCompacted(t *topology.Topology, d kafka.Description) {
	f.kept = map[string]bool{}
	for _, name := range f.sourceTopics() {
		policy, known := d.Topics[name].Config["cleanup.policy"]
		if !known {
			policy = t.Topic(name).Config["cleanup.policy"]
		}
		f.kept[name] = strings.Contains(policy, "compact")
	}
}

// The reasons for a letter to stay.
const (
	staysFiltered  = "not chosen"
	staysAttempts  = "died too often"
	staysTruncated = "cut off"
	staysNoSource  = "no known pipeline and source"
	staysCompacted = "its topic is compacted"
	staysLateEvent = "it would be late again"
	staysTooLarge  = "too large for its topic"
	staysRefused   = "not accepted by its topic"
	staysLimit     = "beyond --max"
	staysLater     = "came during the run"
)

// reasonLate is the reason of the letters of projections.
const reasonLate pipeline.Reason = "late"

// stays returns why a letter is not sent back, or "".
func (f *letterFilter) stays(l *deadletter.Letter) string {
	chosen := func(of []string, values ...string) bool {
		return len(of) == 0 || slices.ContainsFunc(values, func(v string) bool { return slices.Contains(of, v) })
	}
	switch {
	case !chosen(f.reasons, string(l.Reason)) || !chosen(f.stages, l.Stage, l.Pipeline+"/"+l.Stage) || !chosen(f.pipelines, l.Pipeline):
		return staysFiltered
	case !f.since.IsZero() && l.Time.Before(f.since):
		return staysFiltered
	case f.sources[l.Pipeline] == "" && l.Reason == reasonLate:
		return staysLateEvent
	case l.SourceTopic == "" || f.sources[l.Pipeline] != l.SourceTopic:
		return staysNoSource
	case f.kept[l.SourceTopic]:
		return staysCompacted
	case l.Truncated != 0:
		return staysTruncated
	case f.attempts > 0 && l.Attempt >= f.attempts:
		return staysAttempts
	}
	return ""
}

// letterPlace is a partition of a dead-letter topic.
type letterPlace struct {
	topic     string
	partition int32
}

// pendingLetters are the letters that the group has not handled.
type pendingLetters struct {
	bounds map[letterPlace]kafka.Bounds // without partitions that have none
	names  letterNames                  // of these letters
}

// findPending finds the pending letters in the dead-letter topics of d.
func findPending(ctx context.Context, cfg kafka.Config, d kafka.Description, group string, topics []string) (pendingLetters, error) {
	pending := pendingLetters{bounds: map[letterPlace]kafka.Bounds{}}
	for _, topic := range topics {
		if err := d.Hidden[topic]; err != nil {
			return pending, fmt.Errorf("topic %s: %w", topic, err)
		}
		if _, exists := d.Topics[topic]; !exists {
			continue // no letter was written yet
		}
		all, err := kafka.TopicBounds(ctx, cfg, topic, true)
		if err != nil {
			return pending, err
		}
		for partition, b := range all {
			if at, ok := d.Groups[group].Committed[topic][partition]; ok {
				b.Start = max(b.Start, at)
			}
			// The last offsets may belong to transaction markers, which no handler receives.
			last := int64(-1)
			err := kafka.ReadRange(ctx, cfg, topic, partition, b, func(r *pipeline.Record) error {
				last = r.Offset
				letter := deadletter.Parse(r)
				pending.names.add(&letter)
				return nil
			})
			if err != nil {
				return pending, err
			}
			if last >= 0 {
				pending.bounds[letterPlace{topic, partition}] = kafka.Bounds{Start: b.Start, End: last + 1}
			}
		}
	}
	return pending, nil
}
