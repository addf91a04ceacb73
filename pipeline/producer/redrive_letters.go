package producer

import (
	"context"
	"fmt"
	"slices"
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

	// sources are the topics that letters may go back to. The header of a letter
	// may be forged.
	sources map[string]bool
}

// topics returns the dead-letter topics of a topology, and allows letters to go
// back to the topics that its pipelines read.
func (f *letterFilter) topics(t *topology.Topology) (names []string) {
	f.sources = map[string]bool{}
	for _, pl := range t.Pipelines {
		f.sources[pl.From.Name] = true
		if pl.DeadLetter != nil && !slices.Contains(names, pl.DeadLetter.Name) {
			names = append(names, pl.DeadLetter.Name)
		}
	}
	return names
}

// The reasons for a letter to stay.
const (
	staysFiltered  = "not chosen"
	staysAttempts  = "died too often"
	staysTruncated = "cut off"
	staysNoSource  = "no known source"
	staysTooLarge  = "too large for its topic"
	staysRefused   = "not accepted by its topic"
	staysLimit     = "beyond --max"
	staysLater     = "came during the run"
)

// stays returns why a letter is not sent back, or "".
func (f *letterFilter) stays(l *deadletter.Letter) string {
	chosen := func(value string, of []string) bool { return len(of) == 0 || slices.Contains(of, value) }
	switch {
	case !chosen(string(l.Reason), f.reasons) || !chosen(l.Stage, f.stages) || !chosen(l.Pipeline, f.pipelines):
		return staysFiltered
	case !f.since.IsZero() && l.Time.Before(f.since):
		return staysFiltered
	case !f.sources[l.SourceTopic]:
		return staysNoSource
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

// findPending returns the offsets that the group has not committed yet. Partitions
// without any are missing from the result.
func findPending(ctx context.Context, cfg kafka.Config, group string, topics []string) (map[letterPlace]kafka.Bounds, error) {
	d, err := kafka.Describe(ctx, cfg, topics, []string{group}, nil)
	if err != nil {
		return nil, err
	}
	pending := map[letterPlace]kafka.Bounds{}
	for _, topic := range topics {
		if err := d.Hidden[topic]; err != nil {
			return nil, fmt.Errorf("topic %s: %w", topic, err)
		}
		if _, exists := d.Topics[topic]; !exists {
			continue // no letter was written yet
		}
		all, err := kafka.TopicBounds(ctx, cfg, topic, true)
		if err != nil {
			return nil, err
		}
		for partition, b := range all {
			if at, ok := d.Groups[group].Committed[topic][partition]; ok {
				b.Start = max(b.Start, at)
			}
			last, err := lastRecord(ctx, cfg, topic, partition, b)
			if err != nil {
				return nil, err
			}
			if last >= 0 {
				pending[letterPlace{topic, partition}] = kafka.Bounds{Start: b.Start, End: last + 1}
			}
		}
	}
	return pending, nil
}

// lastRecord returns the offset of the last record within the bounds, -1 if there
// is none. It may be less than the end of the bounds minus one: the last offsets may
// belong to transaction markers, which no handler receives.
func lastRecord(ctx context.Context, cfg kafka.Config, topic string, partition int32, b kafka.Bounds) (int64, error) {
	last := int64(-1)
	err := kafka.ReadRange(ctx, cfg, topic, partition, b, func(r *pipeline.Record) error {
		last = r.Offset
		return nil
	})
	return last, err
}
