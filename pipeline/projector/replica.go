package projector

import (
	"context"
	"fmt"
	"slices"

	"millrace/pipeline/kafka"
	"millrace/pipeline/keyring"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/projector/projection"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// A replica is a worker in no group. It follows all partitions of each version that
// runs, writes nothing but that it is there, and answers every question itself. While
// it has yet to catch up, it asks the owners; a release is always for them.

// await waits for what workers of the group write when they start: a replica does
// not make it.
func (v *versions) await(ctx context.Context) error {
	state, err := control.Read(ctx, v.w.Kafka, v.control.Topic)
	if err != nil {
		return err
	}
	for _, pr := range v.w.Topology.Projections {
		if _, ok := state.Live[pr.Name]; !ok {
			return fmt.Errorf("projection %s has no version yet: a replica waits until a worker of the group has started with it (projector run without --replica)", pr.Name)
		}
		v.compare(state, pr)
	}
	if v.keys != nil {
		_, err = v.topics(ctx, v.w, []*topology.Topic{keyring.Topic(v.w.Topology)})
	}
	return err
}

// topics makes sure that topics are there; a replica waits for them.
func (p *projector) topics(ctx context.Context, w *worker.Worker, topics []*topology.Topic) (kafka.Cluster, error) {
	if !p.replica {
		return w.EnsureTopics(ctx, topics)
	}
	var names []string
	for _, t := range topics {
		names = append(names, t.Name)
	}
	have, err := kafka.Describe(ctx, w.Kafka, names, nil, nil)
	if err != nil {
		return kafka.Cluster{}, err
	}
	for _, name := range names {
		if _, ok := have.Topics[name]; !ok && have.Hidden[name] == nil {
			return kafka.Cluster{}, fmt.Errorf("topic %s does not exist yet: a replica waits until a worker of the group has made it", name)
		}
	}
	return kafka.EnsureTopics(ctx, w.Kafka, worker.TopicSpecs(topics...), false)
}

// followBeside makes what follows partitions, if this worker is to.
func (v *versions) followBeside(l *versionLoop) (err error) {
	switch {
	case v.replica:
		l.follow, err = v.newFollow(l, l.ps, l.readers)
	case v.standby:
		// Of the memory, what is folded for the group gets the most.
		others := l.ps.Twin(v.restore.from(v.w.Kafka, standbyName(l.group)))
		l.ps.Memory, others.Memory = l.ps.Memory/4*3, l.ps.Memory/4
		var readers []*projection.Reader
		for _, r := range l.readers {
			t := others.Topics[r.Topic]
			i := slices.IndexFunc(t.Projections, func(p *projection.Projection) bool { return p.Label() == r.Projection.Label() })
			readers = append(readers, &projection.Reader{Set: others, Projection: t.Projections[i], Registry: r.Registry, EventTypes: r.EventTypes, Topic: r.Topic, NumPartitions: r.NumPartitions, Group: r.Group})
		}
		l.follow, err = v.newFollow(l, others, readers)
	}
	return err
}

// everyReader returns the readers of what is answered from, and of what is followed
// beside it.
func (l *versionLoop) everyReader() []*projection.Reader {
	all := slices.Clone(l.readers)
	if l.follow != nil && l.follow.ps != l.ps {
		all = append(all, l.follow.readers...)
	}
	return all
}

// forget takes over which aggregates must not be there.
func (l *versionLoop) forget(state *control.State) {
	l.ps.Forget(state)
	if l.follow != nil {
		l.follow.ps.Forget(state)
	}
}
