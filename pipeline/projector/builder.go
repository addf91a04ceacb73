package projector

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"golang.org/x/sync/errgroup"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/kafka"
	"millrace/pipeline/kafka/recent"
	"millrace/pipeline/keyring"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/projector/measure"
	"millrace/pipeline/projector/projection"
	"millrace/pipeline/projector/reader"
	"millrace/pipeline/receipt"
	"millrace/pipeline/store"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// builder makes the loops of consumer groups. It has no mutable fields but ran, which has its
// own lock.
type builder struct {
	options   options
	w         *worker.Worker
	store     *store.Store
	keys      *keyring.Ring // nil if nothing is encrypted
	metrics   *measure.Metrics
	loops     *kafka.Metrics
	restores  *restores
	receipts  *receipt.Reader
	peers     *peers
	announcer *announcer
	drift     *event.Drift
	ran       *ranTopics
}

// build returns the loop of a group, which is not started. It makes sure that topics and
// schemas exist. Versions that cannot start are held: the loop runs without them. If none
// can start, that is an error. follows means that workers of another release own the
// partitions.
func (b *builder) build(ctx context.Context, group string, all []wantedVersion, follows bool, state *control.State) (*groupLoop, error) {
	l := &groupLoop{group: group, signature: signature(all, follows), follows: follows || b.options.replica, done: make(chan struct{})}
	var specs []projection.Spec
	var known map[string]kafka.TopicInfo
	var err error
	if l.wanted, specs, known, l.held, err = b.startable(ctx, all); err != nil {
		return nil, err
	}
	for _, v := range l.wanted {
		if v.answers {
			l.answers.Store(true)
		}
		if v.isLive(state) {
			l.isLive.Store(true)
		}
	}
	if err := b.makeSets(l, specs); err != nil {
		return nil, err
	}
	if err := b.makeReaders(l, specs); err != nil {
		return nil, err
	}
	if l.watches = append(l.watches, b.watchUses(l)); l.follows {
		l.watches = append(l.watches, func(ctx context.Context) error { return kafka.Watch(ctx, b.w.Kafka, known) })
	} else {
		if l.loop, err = b.newLoop(ctx, l, specs, known); err != nil {
			return nil, err
		}
	}
	return l, l.forget(ctx, state)
}

// maxProbes is how many versions of a group are checked at the same time.
const maxProbes = 8

// startable returns the versions that can start, with their projections and topics, and
// why the others cannot, by label. If none can start, the error has the reasons.
func (b *builder) startable(ctx context.Context, all []wantedVersion) (some []wantedVersion, specs []projection.Spec, known map[string]kafka.TopicInfo, held map[string]error, err error) {
	if specs, known, err = b.specs(ctx, all); err == nil || ctx.Err() != nil {
		return all, specs, known, nil, err
	}
	known, held = map[string]kafka.TopicInfo{}, map[string]error{}
	found := make([]struct {
		specs  []projection.Spec
		topics map[string]kafka.TopicInfo
		err    error
	}, len(all))
	var g errgroup.Group
	g.SetLimit(maxProbes)
	for i, v := range all {
		g.Go(func() error {
			found[i].specs, found[i].topics, found[i].err = b.specs(ctx, []wantedVersion{v})
			return nil
		})
	}
	_ = g.Wait() // every function returns nil
	var faults []error
	for i, v := range all {
		if err := found[i].err; err != nil {
			held[v.label()] = err
			faults = append(faults, fmt.Errorf("projection %s: %w", v.label(), err))
			continue
		}
		some, specs = append(some, v), append(specs, found[i].specs...)
		maps.Copy(known, found[i].topics)
	}
	if len(some) == 0 {
		return nil, nil, nil, held, errors.Join(faults...)
	}
	return some, specs, known, held, nil
}

// specs returns the projections of versions, and their topics.
func (b *builder) specs(ctx context.Context, wanted []wantedVersion) ([]projection.Spec, map[string]kafka.TopicInfo, error) {
	var topics []*topology.Topic
	for _, v := range wanted {
		topics = append(topics, v.projection.From, snapshotsTopic(v.projection, v.record.Snapshots))
		if v.record.Internal != "" {
			topics = append(topics, internalTopic(v.projection, v.record.Internal))
		}
		if v.projection.Late != nil {
			topics = append(topics, v.projection.Late)
		}
	}
	if err := b.usable(ctx, wanted); err != nil {
		return nil, nil, err
	}
	cluster, err := ensureTopics(ctx, b.w, b.options.replica, topics)
	if err != nil {
		return nil, nil, err
	}
	var specs []projection.Spec
	for _, v := range wanted {
		spec, err := b.spec(ctx, &v, cluster)
		if err != nil {
			return nil, nil, err
		}
		specs = append(specs, spec)
	}
	return specs, cluster.Topics, nil
}

func (b *builder) spec(ctx context.Context, v *wantedVersion, cluster kafka.Cluster) (projection.Spec, error) {
	pr := v.projection
	id, err := event.EnsureSchema(ctx, b.w.Registry, pr.Snapshots.Subjects.Value(v.record.Snapshots, pr.Fold.Snapshot()), pr.Fold.Snapshot(), !b.w.Flags.NoRegister && !b.options.replica)
	if err != nil {
		return projection.Spec{}, err
	}
	events, snapshots := cluster.Topics[pr.From.Name], cluster.Topics[v.record.Snapshots]
	for _, name := range []string{v.record.Snapshots, v.record.Internal} {
		if name != "" && cluster.Topics[name].Partitions != events.Partitions {
			return projection.Spec{}, &cli.ExitError{Code: cli.ExitUsage, Err: fmt.Errorf("projection %s: %s has %d partitions and %s has %d; the snapshots of a partition are in the partition with the same number",
				pr.Name, events.Name, events.Partitions, name, cluster.Topics[name].Partitions)}
		}
	}
	spec := projection.Spec{
		Fold: pr.Fold, Events: events, Types: pr.From.Types, Label: v.label(), Identity: projection.Identity(cluster.ID, events, snapshots, cluster.Topics[v.record.Internal], pr.Fold),
		Snapshots: snapshots.Name, SnapshotID: id, Publish: pr.Publish,
	}
	if v.record.Internal != "" {
		spec.Internal, spec.SnapshotsTopicID = v.record.Internal, snapshots.ID
	}
	if pr.Late != nil {
		spec.Late = pr.Late.Name
	}
	return spec, nil
}

// makeSets makes the partitions of a loop, and what follows those of other workers.
func (b *builder) makeSets(l *groupLoop, specs []projection.Spec) (err error) {
	cfg := projection.Config{
		Store: b.store, Registry: b.w.Registry, Projections: specs, NoHistory: b.options.noHistory, Memory: b.options.memory << 20, Log: b.w.Log, Drift: b.drift,
		AcceptLoss: b.w.Flags.AcceptLoss,
		Restore:    b.restores.reader(b.w.Kafka, l.group),
		Recent: func(ctx context.Context, topic string, partitions []int32, n int64, f func(*pipeline.Record) error) error {
			return recent.Read(ctx, b.w.Kafka, topic, partitions, n, f)
		},
		Settled: b.restores.settled(b.w.Kafka, l.group),
		LogStart: func(ctx context.Context, topic string, partition int32) (int64, error) {
			bounds, err := kafka.TopicBounds(ctx, b.w.Kafka, topic, false)
			return bounds[partition].Start, err
		},
		Tail: func(ctx context.Context, topic string, partition int32, from int64, f func(*pipeline.Record) error) error {
			_, err := kafka.ReadPartition(ctx, b.w.Kafka, topic, partition, from, f)
			return err
		},
	}
	hidden := func(key projection.Key, left bool) bool {
		if left {
			// While partitions move between sessions of one worker, the partition that was
			// left answers. With other workers, it might answer beside its new owner.
			return b.peers.exist() && !l.follows
		}
		// The previous owner may have answered from a later offset.
		return l.answers.Load() && b.restores.behind(restoreTask{l.group, phaseTail, key.Topic, key.Partition})
	}
	if l.follows {
		l.follower = newGroupFollower(b, l, l.group)
		cfg.Hidden, cfg.Follows, cfg.Progress, cfg.Ends = hidden, true, l.follower.progressOf, l.follower.ends
		l.set = projection.New(cfg)
		return l.follower.attach(b, l.set, specs)
	}
	own := cfg
	own.Hidden, own.Metrics = hidden, b.metrics
	own.Progress = func(topic string, partition int32) kafka.PartitionProgress {
		return l.loop.ProgressOf(topic, partition)
	} // the loop is made later
	if !b.options.standby {
		l.set = projection.New(own)
		return nil
	}
	// What is folded for the group gets most of the memory.
	l.follower = newGroupFollower(b, l, standbyName(l.group))
	l.follower.settle = followSettle
	own.Memory, cfg.Memory = own.Memory/4*3, own.Memory/4
	l.set = projection.New(own)
	cfg.Restore, cfg.Settled = b.restores.reader(b.w.Kafka, standbyName(l.group)), b.restores.settled(b.w.Kafka, standbyName(l.group))
	cfg.Follows, cfg.Progress, cfg.Ends = true, l.follower.progressOf, l.follower.ends
	return l.follower.attach(b, projection.New(cfg), specs)
}

// makeReaders makes the readers of a loop, in the order of wanted.
func (b *builder) makeReaders(l *groupLoop, specs []projection.Spec) error {
	for i, v := range l.wanted {
		pr := v.projection
		cfg := reader.Config{Group: l.group, Upstream: receipt.NewUpstream(b.w.Topology, pr.From, b.receipts)}
		if b.keys != nil {
			var err error
			if cfg.Show, err = b.keys.NewShower(b.w.Topology.Encryption, append([]*codec.Schema{pr.Fold.State()}, pr.From.Types...)...); err != nil {
				return fmt.Errorf("projection %s: %w", v.label(), err)
			}
		}
		l.readers = append(l.readers, reader.New(l.set, l.set.Projection(specs[i].Label), cfg))
	}
	return nil
}

// newLoop returns the loop that folds the events of a group. known are its topics.
func (b *builder) newLoop(ctx context.Context, l *groupLoop, specs []projection.Spec, known map[string]kafka.TopicInfo) (*kafka.Loop, error) {
	cfg := b.w.LoopConfig("projector", b.loops)
	cfg.Known = known
	cfg.Group = l.group
	snapshots := map[string]bool{}
	for _, spec := range specs {
		published := []string{spec.Snapshots}
		if spec.Internal != "" {
			published = append(published, spec.Internal)
		}
		for _, topic := range published {
			snapshots[topic] = true
			cfg.Writes = append(cfg.Writes, topic)
		}
		cfg.Topics = appendOnce(cfg.Topics, spec.Events.Name)
		if spec.Late != "" {
			cfg.Writes = appendOnce(cfg.Writes, spec.Late)
		}
	}
	b.w.FitMemory(ctx, &cfg, "--sessions")
	l.fillers = b.w.Sessions()
	cfg.NewHandler = func(int) (pipeline.Handler, error) {
		return &groupHandler{handler: l.set.NewHandler(), loop: l, restores: b.restores, announcer: b.announcer, snapshots: snapshots}, nil
	}
	loop, err := kafka.NewLoop(cfg)
	return loop, worker.Misconfigured(err)
}

// appendOnce appends a name unless the list has it.
func appendOnce(names []string, name string) []string {
	for _, n := range names {
		if n == name {
			return names
		}
	}
	return append(names, name)
}
