package projection

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kfake"

	"millrace/pipeline"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/measure"
	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/store"
)

const clusterPartitions = 4

// cluster is a broker with the topics of the tests.
type cluster struct {
	*world
	cfg  kafka.Config
	info kafka.Cluster
	sent int

	sessions int // of a worker
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	fake, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	c := &cluster{world: newWorld(t), cfg: kafka.Config{Brokers: fake.ListenAddrs()}, sessions: 2}
	c.ensure()
	return c
}

func (c *cluster) ensure() {
	c.t.Helper()
	var err error
	if c.info, err = kafka.EnsureTopics(c.t.Context(), c.cfg, []kafka.TopicSpec{
		{Name: projectiontest.EventsTopic, Partitions: clusterPartitions},
		{Name: projectiontest.SnapshotsTopic, Partitions: clusterPartitions, Config: map[string]string{"cleanup.policy": "compact"}},
	}, true); err != nil {
		c.t.Fatal(err)
	}
}

// send writes n events, a few for each of 100 users.
func (c *cluster) send(n int) {
	c.t.Helper()
	w, err := kafka.NewWriter(c.cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	defer w.Close()
	for range n {
		id := fmt.Sprint("u-", c.sent%100)
		typ := projectiontest.UserUpdated
		if c.sent < 100 {
			typ = projectiontest.UserCreated
		}
		w.Write(c.t.Context(), &pipeline.Record{Topic: projectiontest.EventsTopic, Partition: pipeline.KeyPartition, Key: []byte(id),
			Value: projectiontest.UserEvent(c.t, c.types, typ, c.sent, id), Time: time.UnixMilli(int64(c.sent))}, func(err error) {
			if err != nil {
				c.t.Error(err)
			}
		})
		c.sent++
	}
	if err := w.Flush(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
}

// loopWorker is a projector with a loop, and a store in memory.
type loopWorker struct {
	*cluster
	ps   *Set
	kept *store.Store
	loop *kafka.Loop
	end  func() error // stops the worker and waits
}

// work starts a worker over a disk.
func (c *cluster) work(instance string, disk *world) *loopWorker {
	c.t.Helper()
	kept, err := store.Open("data", store.Options{FS: disk.disk})
	if err != nil {
		c.t.Fatal(err)
	}
	lw := &loopWorker{cluster: c, kept: kept}
	events := c.info.Topics[projectiontest.EventsTopic]
	cfg := Config{
		Store: kept, Registry: eventtest.SchemaList(c.types), Log: slog.New(slog.NewTextHandler(c.t.Output(), nil)),
		Restore: func(ctx context.Context, topic string, partition int32, f func(*pipeline.Record) error) (int64, error) {
			return kafka.ReadPartition(ctx, c.cfg, topic, partition, 0, f)
		},
		Projections: []Spec{{
			Fold: c.fold, Events: events, Types: c.types, Identity: Identity(c.info.ID, events, c.info.Topics[projectiontest.SnapshotsTopic], kafka.TopicInfo{}, c.fold),
			Snapshots: projectiontest.SnapshotsTopic, SnapshotID: 100, Publish: c.publish,
		}},
	}
	if c.clock != nil {
		cfg.Now, cfg.After = c.clock.now, c.clock.after
	}
	lw.ps = New(cfg)
	lw.loop, err = kafka.NewLoop(kafka.LoopConfig{
		Client: c.cfg, Group: "shop-projector", Topics: []string{projectiontest.EventsTopic}, Instance: instance, Sessions: c.sessions, CommitInterval: 10 * time.Millisecond,
		NewHandler: func(int) (pipeline.Handler, error) {
			return lw.ps.NewHandler(), nil
		},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan error, 1)
	go func() { done <- lw.loop.Run(ctx) }()
	lw.end = func() error {
		cancel()
		err := <-done
		lw.ps.Close()
		if err2 := kept.Close(); err == nil {
			err = err2
		}
		return err
	}
	return lw
}

func (lw *loopWorker) stop() {
	lw.t.Helper()
	if err := lw.end(); err != nil {
		lw.t.Fatal(err)
	}
}

// caughtUp waits until the group has committed everything.
func (c *cluster) caughtUp() {
	c.t.Helper()
	c.await("the group to catch up", func() bool {
		lag, err := kafka.Lag(c.t.Context(), c.cfg, "shop-projector", projectiontest.EventsTopic)
		return err == nil && lag == 0 // at first the group does not exist
	})
}

func (c *cluster) await(what string, cond func() bool) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			c.t.Fatalf("waiting for %s took too long", what)
		}
	}
}

// agree compares the committed snapshots with the log, folded without interruptions. It
// returns how often each snapshot was published.
func (c *cluster) agree() map[string]int {
	c.t.Helper()
	want := map[string]string{}
	got, times := map[string]string{}, map[string]int{}
	for p := range int32(clusterPartitions) {
		f := c.fold.NewFolder()
		all := map[string]*fold.Aggregate{}
		c.read(projectiontest.EventsTopic, p, func(r *pipeline.Record) {
			id, err := f.Read(int(r.Value[4]), r.Value[5:], fold.OriginOf(r, nil))
			if err != nil {
				c.t.Fatal(err)
			}
			a := all[string(id)]
			if a == nil {
				a = &fold.Aggregate{Source: fold.Source{Topic: projectiontest.EventsTopic, TopicID: c.info.Topics[projectiontest.EventsTopic].ID, Partition: p}}
				all[string(id)] = a
			}
			if _, err := f.Apply(a); err != nil {
				c.t.Fatal(err)
			}
			a.Offset = r.Offset
		})
		for id, a := range all {
			want[id] = string(c.fold.AppendSnapshot(nil, []byte(id), a))
		}
		c.read(projectiontest.SnapshotsTopic, p, func(r *pipeline.Record) {
			if string(r.Key) == internalrecord.CheckpointKey {
				return
			}
			times[string(r.Key)]++
			got[string(r.Key)] = string(r.Value[5:])
		})
	}
	same(c.t, "snapshots", got, want)
	return times
}

func (c *cluster) read(topic string, partition int32, f func(*pipeline.Record)) {
	c.t.Helper()
	if _, err := kafka.ReadPartition(c.t.Context(), c.cfg, topic, partition, 0, func(r *pipeline.Record) error {
		f(r)
		return nil
	}); err != nil {
		c.t.Fatal(err)
	}
}

func sum(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

func TestAWorkerOnABrokerStopsAndContinues(t *testing.T) {
	c := newCluster(t)
	c.send(400)
	w := c.work("a", c.world)
	c.caughtUp()
	w.stop()
	first := sum(c.agree())

	// With its store, nothing is folded or published again.
	c.send(40)
	w = c.work("a", c.world)
	c.caughtUp()
	w.stop()
	if n := sum(c.agree()) - first; n > 40 {
		t.Errorf("%d snapshots for 40 events", n)
	}

	// Without its store, it restores from snapshots, and reads the log again for the index.
	fresh := newWorld(t)
	c.send(40)
	w = c.work("a", fresh)
	c.caughtUp()
	w.stop()
	c.agree()
}

// Two workers share the partitions, one leaves, and one comes back to an old store.
// Events come all the time.
func TestWorkersComeAndGo(t *testing.T) {
	c := newCluster(t)
	c.send(400)
	a := c.work("a", c.world)
	other := newWorld(t)
	b := c.work("b", other)
	holds := func(w *loopWorker) int {
		return len(w.ps.Assigned())
	}
	c.await("both to have partitions", func() bool { return holds(a) > 0 && holds(b) > 0 && holds(a)+holds(b) == clusterPartitions })
	c.send(400)
	c.caughtUp()
	a.stop()
	c.send(400)
	c.await("the other to have all", func() bool { return holds(b) == clusterPartitions })
	c.caughtUp()
	c.agree()
	a = c.work("a", c.world)
	c.await("both to have partitions again", func() bool { return holds(a) > 0 && holds(a)+holds(b) == clusterPartitions })
	c.send(400)
	c.caughtUp()
	b.stop()
	c.caughtUp()
	c.await("the first to have all", func() bool { return holds(a) == clusterPartitions })
	c.send(40)
	c.caughtUp()
	a.stop()
	c.agree()
}

// An event that another partitioner wrote to a partition that is not its aggregate's does
// not create a second state.
func TestAnEventInAnotherPartitionIsNotFolded(t *testing.T) {
	c := newCluster(t)
	c.send(200)
	w, err := kafka.NewWriter(c.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	const id = "u-1"
	home := kafka.PartitionOf([]byte(id), clusterPartitions)
	w.Write(t.Context(), &pipeline.Record{Topic: projectiontest.EventsTopic, Partition: (home + 1) % clusterPartitions, Key: []byte(id), Value: projectiontest.UserEvent(t, c.types, projectiontest.UserUpdated, 1000, id)}, func(err error) {
		if err != nil {
			t.Error(err)
		}
	})
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	lw := c.work("a", c.world)
	c.caughtUp()
	p := lw.ps.topics[projectiontest.EventsTopic].projections[0]
	if got := testutil.ToFloat64(p.metrics.Events[measure.Mispartitioned]); got != 1 {
		t.Errorf("%v events are counted as mispartitioned, want 1", got)
	}
	lw.stop()
	for partition := range int32(clusterPartitions) {
		c.read(projectiontest.SnapshotsTopic, partition, func(r *pipeline.Record) {
			if string(r.Key) == id && partition != home {
				t.Errorf("there is a second state of %s, in partition %d", id, partition)
			}
		})
	}
}
