package projector

import (
	"context"
	"fmt"

	"millrace/pipeline/cli"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyring"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// begin makes sure that each projection has a live version: at first, the version that
// the topology defines.
func (p *program) begin(ctx context.Context) error {
	if p.command.options.replica {
		return p.awaitVersions(ctx)
	}
	needed := []kafka.TopicSpec{control.TopicSpec(p.control.Topic)}
	if p.keys != nil {
		needed = append(needed, worker.TopicSpecs(keyring.Topic(p.w.Topology))...)
	}
	if _, err := kafka.EnsureTopics(ctx, p.w.Kafka, needed, !p.w.Flags.NoCreateTopics); err != nil {
		return err
	}
	state, err := control.ReadState(ctx, p.w.Kafka, p.control.Topic)
	if err != nil {
		return err
	}
	first := map[string][]control.Record{}
	for _, pr := range p.w.Topology.Projections {
		if _, ok := state.Live[pr.Name]; ok {
			p.compare(state, pr)
			continue
		}
		if first[pr.Name], err = p.firstVersion(ctx, state, pr); err != nil {
			return err
		}
	}
	if len(first) == 0 {
		return nil
	}
	// Another worker may have made a version live, and published, before firstVersion has
	// looked at the topics.
	if state, err = control.ReadState(ctx, p.w.Kafka, p.control.Topic); err != nil {
		return err
	}
	var records []control.Record
	for _, pr := range p.w.Topology.Projections {
		if _, ok := state.Live[pr.Name]; !ok {
			records = append(records, first[pr.Name]...)
		}
	}
	if len(records) == 0 {
		return nil
	}
	return control.WriteRecords(ctx, p.w.Kafka, p.control.Topic, p.command.env.Now(), records...)
}

// firstVersion returns the records that make a version of a projection live.
func (p *program) firstVersion(ctx context.Context, state *control.State, pr *topology.Projection) (records []control.Record, err error) {
	env, n := p.command.env, 1
	if numbers := state.Numbers(pr.Name); len(numbers) > 0 {
		n = numbers[0]
	} else {
		record, err := NewVersion(env, p.command.worker.Topology, p.w.Topology, pr, n)
		if err != nil {
			return nil, &cli.ExitError{Code: cli.ExitUsage, Err: err}
		}
		if apart, err := p.keepsApart(ctx, record); err != nil {
			return nil, fmt.Errorf("projection %s: %w", pr.Name, err)
		} else if !apart {
			record.SetInternal("")
		}
		records = append(records, control.Record{Key: control.VersionKey(pr.Name, n), Value: record})
	}
	return append(records, control.Record{Key: control.LiveKey(pr.Name), Value: control.LiveRecord{Format: control.Format, Version: n, Time: env.Now().UTC(), By: env.Build.Version}}), nil
}

// keepsApart reports whether a first version has its internal records on a topic of their
// own. It does not if everything was published on the snapshots topic already: by a release
// without records of versions, or before the control topic was deleted.
func (p *program) keepsApart(ctx context.Context, record control.VersionRecord) (bool, error) {
	together, err := p.hasRecords(ctx, record.Snapshots)
	if err != nil || !together {
		return true, err
	}
	return p.hasRecords(ctx, record.Internal)
}

// hasRecords reports whether a topic exists and has records.
func (p *program) hasRecords(ctx context.Context, topic string) (bool, error) {
	d, err := kafka.Describe(ctx, p.w.Kafka, []string{topic}, nil, nil)
	if err != nil {
		return false, err
	}
	if err := d.Hidden[topic]; err != nil {
		return false, fmt.Errorf("topic %s cannot be described: %w; grant DESCRIBE on it", topic, err)
	}
	if _, ok := d.Topics[topic]; !ok {
		return false, nil
	}
	bounds, err := kafka.TopicBounds(ctx, p.w.Kafka, topic, false)
	for _, b := range bounds {
		if b.Start < b.End {
			return true, nil
		}
	}
	return false, err
}
