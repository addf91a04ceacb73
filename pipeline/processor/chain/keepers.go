package chain

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
)

// keepers keeps the state of the stages of one session's chain on state topics: one
// topic for each stage with state, with as many partitions as the source. The changes of
// a batch are written in its transaction. When a partition of the source is assigned,
// the state of this partition is restored from the state topic.
//
// A state topic is a log of changes. A record is needed as long as the state contains an
// entry from it. The topic is not compacted, because no record replaces another one.
// Kafka does not delete records by age either: their age has no meaning when a worker was
// down, or when it replays old events. The worker deletes records itself (trim.go).
type keepers struct {
	client kafka.Config
	now    func() time.Time
	log    *slog.Logger
	kept   []keptStage

	mu       sync.Mutex
	assigned map[int32]bool // guarded by mu: partitions of the source

	trimmed time.Time // time of the last trim; owned by the goroutine that processes events
}

// keptStage is a stage with state. name, topic and keeper never change. The goroutine
// that processes events owns the other fields.
type keptStage struct {
	name, topic  string
	keeper       stage.Keeper
	unreadable   prometheus.Counter // records of the topic
	entriesGauge prometheus.Gauge
	bytesGauge   prometheus.Gauge

	entries, bytes int              // the share of this session in the gauges
	wrote          bool             // a change was emitted since the last read of the ends of the topic
	marks          map[int32][]mark // by partition, the oldest first
}

// StateTopic returns the name of the topic with the state of a stage.
func StateTopic(t *topology.Topology, pl *topology.Pipeline, stageName string) string {
	return t.Name + "-" + pl.Name + "-" + stageName + "-state"
}

// StateTopics returns the state topics of a pipeline. partitions is the number of
// partitions of its source.
func StateTopics(t *topology.Topology, pl *topology.Pipeline, partitions int) (specs []kafka.TopicSpec) {
	for _, s := range pl.Stages {
		if _, ok := s.Built.(stage.Keeper); ok {
			specs = append(specs, kafka.TopicSpec{
				Name: StateTopic(t, pl, s.Name), Partitions: partitions, Replication: pl.From.Replication,
				Config: map[string]string{"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"},
			})
		}
	}
	return specs
}

// newKeepers returns the keepers of the stages of a chain.
func newKeepers(c config, pl *topology.Pipeline, stages *pipeline.Chain) *keepers {
	k := &keepers{client: c.kafka, now: c.now, log: c.log, assigned: map[int32]bool{}, trimmed: c.now()}
	stages.Each(func(name string, s pipeline.Stage) {
		if keeper, ok := s.(stage.Keeper); ok {
			k.kept = append(k.kept, keptStage{
				name: name, topic: StateTopic(c.topology, pl, name), keeper: keeper, marks: map[int32][]mark{}, unreadable: c.metrics.stateBad.WithLabelValues(pl.Name, name),
				entriesGauge: c.metrics.stateEntries.WithLabelValues(pl.Name, name), bytesGauge: c.metrics.stateBytes.WithLabelValues(pl.Name, name),
			})
		}
	})
	return k
}

// any reports whether a stage has state.
func (k *keepers) any() bool { return len(k.kept) > 0 }

// assign restores the state of partitions, and returns the offset from which to read
// each of them.
func (k *keepers) assign(ctx context.Context, ps []kafka.Partition) ([]int64, error) {
	from := make([]int64, len(ps))
	for i, p := range ps {
		from[i] = max(p.Committed, p.Start)
		for j := range k.kept {
			if err := k.restore(ctx, &k.kept[j], p.Partition, from[i]); err != nil {
				return nil, err
			}
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range ps {
		k.assigned[p.Partition] = true
	}
	return from, nil
}

// headerStateFormat is the header that names the format of a change, from the second
// format on. Records of this release do not have it.
const headerStateFormat = "millrace.state_format"

// restore restores the state of a stage for one partition of the source. next is the
// offset of the next event in it.
func (k *keepers) restore(ctx context.Context, kept *keptStage, partition int32, next int64) error {
	began, n := time.Now(), 0
	err := kept.keeper.Assign(partition, next, func(add func([]byte) error) error {
		_, err := kafka.ReadSettled(ctx, k.client, kept.topic, partition, func(r *pipeline.Record) error {
			n++
			if format, ok := r.Header(headerStateFormat); ok {
				return pipeline.Fatal("%s/%d offset %d: the state of stage %s is in format %s, which this program does not know: use the newer program", kept.topic, partition, r.Offset, kept.name, format)
			}
			if err := add(r.Value); err != nil {
				kept.unreadable.Inc()
				k.log.Error("a record of a state topic cannot be read; it is skipped", "stage", kept.name, "topic", kept.topic, "partition", partition, "offset", r.Offset, "err", err)
			}
			return nil
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("stage %s: restore its state: %w", kept.name, err)
	}
	k.log.Info("state restored", "stage", kept.name, "partition", partition, "records", n, "took", time.Since(began))
	return nil
}

// revoke deletes the state of partitions.
func (k *keepers) revoke(ps []kafka.Partition) {
	k.mu.Lock()
	for _, p := range ps {
		delete(k.assigned, p.Partition)
	}
	k.mu.Unlock()
	for _, p := range ps {
		for i := range k.kept {
			k.kept[i].keeper.Revoke(p.Partition)
		}
	}
}

// partitions returns the assigned partitions of the source, in order.
func (k *keepers) partitions() []int32 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Sorted(maps.Keys(k.assigned))
}

// flush emits the changes of the batch.
func (k *keepers) flush(out pipeline.Emitter) {
	for i := range k.kept {
		kept := &k.kept[i]
		kept.keeper.Changes(func(partition int32, change []byte) {
			out.Emit(&pipeline.Record{Topic: kept.topic, Partition: partition, Value: change, Time: k.now()})
			kept.wrote = true
		})
	}
}

// undo removes an event that became a dead letter from the state, so it counts as new if
// it is replayed.
func (k *keepers) undo(in *pipeline.Record) {
	for i := range k.kept {
		k.kept[i].keeper.Undo(in.Partition, in.Offset)
	}
}

// committed is called after a batch was committed. It updates the metrics and trims the
// state topics when it is time.
func (k *keepers) committed() {
	if len(k.kept) == 0 {
		return
	}
	for i := range k.kept {
		k.kept[i].measure()
	}
	if now := k.now(); now.Sub(k.trimmed) >= trimEvery {
		k.trimmed = now
		for i := range k.kept {
			if err := k.trim(&k.kept[i]); err != nil {
				k.log.Warn("old records of a state topic cannot be deleted", "topic", k.kept[i].topic, "err", err)
			}
		}
	}
}

// measure updates the metrics. It adds differences, because other sessions add to the
// same gauges.
func (s *keptStage) measure() {
	entries, bytes := s.keeper.Size()
	s.entriesGauge.Add(float64(entries - s.entries))
	s.bytesGauge.Add(float64(bytes - s.bytes))
	s.entries, s.bytes = entries, bytes
}
