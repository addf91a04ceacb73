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

// keepers are the stages of one session's chain that remember something from
// one batch to the next, and keep it on state topics: for each stage one, with as
// many partitions as the source has. A batch's changes are written with its
// outputs, and read back where the source's partition is assigned next.
//
// A state topic is a log: records are needed until what they say is forgotten.
// It is not compacted, for no record replaces another. Nor does Kafka delete
// records by age: their age says nothing while a worker is down, or replays what
// happened years ago. The worker itself deletes what is no longer needed.
type keepers struct {
	client kafka.Config
	now    func() time.Time
	log    *slog.Logger
	Kept   []keptStage
	ends   []stage.Batcher

	mu       sync.Mutex
	assigned map[int32]bool

	trimmed time.Time // when it was done last
}

// keptStage is a keeper. All but its name, topic and keeper is for the goroutine
// that processes events.
type keptStage struct {
	name, topic string
	Keeper      stage.Keeper
	sizeGauge   prometheus.Gauge
	bytesGauge  prometheus.Gauge

	entries, bytes int  // of this session, as the metrics know them
	wrote          bool // something, since the last look at the topic's ends
	marks          map[int32][]mark
}

// StateMetrics says how much stages remember.
type StateMetrics struct{ entries, bytes *prometheus.GaugeVec }

func NewStateMetrics(reg prometheus.Registerer) *StateMetrics {
	gauge := func(name, help string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "millrace_state_" + name, Help: help}, []string{"pipeline", "stage"})
		reg.MustRegister(g)
		return g
	}
	return &StateMetrics{
		entries: gauge("entries", "What a stage of this worker remembers: for a dedupe, ids."),
		bytes:   gauge("bytes", "Memory that this takes."),
	}
}

// keeps reports whether a stage needs more of a batch than what comes out of it.
func (k *keepers) keeps() bool { return len(k.Kept) > 0 }

// StateTopic is where a stage keeps what it remembers.
func StateTopic(t *topology.Topology, pl *topology.Pipeline, stageName string) string {
	return t.Name + "-" + pl.Name + "-" + stageName + "-state"
}

// StateTopics returns the state topics of a pipeline whose source has that many
// partitions.
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

// newKeepers finds the keepers of a chain.
func newKeepers(t *topology.Topology, pl *topology.Pipeline, chain *pipeline.Chain, client kafka.Config, metrics *StateMetrics, now func() time.Time, log *slog.Logger) *keepers {
	k := &keepers{client: client, now: now, log: log, assigned: map[int32]bool{}, trimmed: now()}
	chain.Each(func(name string, s pipeline.Stage) {
		if b, ok := s.(stage.Batcher); ok {
			k.ends = append(k.ends, b)
		}
		if keeper, ok := s.(stage.Keeper); ok {
			k.Kept = append(k.Kept, keptStage{
				name: name, topic: StateTopic(t, pl, name), Keeper: keeper, marks: map[int32][]mark{},
				sizeGauge: metrics.entries.WithLabelValues(pl.Name, name), bytesGauge: metrics.bytes.WithLabelValues(pl.Name, name),
			})
		}
	})
	return k
}

// Assign implements [kafka.Assigner].
func (k *keepers) Assign(ctx context.Context, ps []kafka.Partition) ([]int64, error) {
	from := make([]int64, len(ps))
	for i, p := range ps {
		from[i] = max(p.Committed, p.Start)
		for j := range k.Kept {
			if err := k.restore(ctx, &k.Kept[j], p.Partition, from[i]); err != nil {
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

// restore reads back what a stage remembers of a partition, whose next event
// stands at an offset.
func (k *keepers) restore(ctx context.Context, kept *keptStage, partition int32, next int64) error {
	began, n := time.Now(), 0
	err := kept.Keeper.Assign(partition, next, func(add func([]byte) error) error {
		_, err := kafka.ReadSettled(ctx, k.client, kept.topic, partition, func(r *pipeline.Record) error {
			n++
			if err := add(r.Value); err != nil {
				return pipeline.Fatal("%s/%d offset %d: %w. What stage %s remembers cannot be read; to begin anew, remembering nothing, delete the topic", kept.topic, partition, r.Offset, err, kept.name)
			}
			return nil
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("stage %s: reading what it remembers: %w", kept.name, err)
	}
	k.log.Info("state restored", "stage", kept.name, "partition", partition, "records", n, "took", time.Since(began))
	return nil
}

// Revoke implements [kafka.Assigner].
func (k *keepers) Revoke(ps []kafka.Partition) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range ps {
		delete(k.assigned, p.Partition)
		for i := range k.Kept {
			k.Kept[i].Keeper.Revoke(p.Partition)
		}
	}
}

func (k *keepers) partitions() []int32 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Sorted(maps.Keys(k.assigned))
}

// flush emits what the batch has changed.
func (k *keepers) flush(out pipeline.Emitter) {
	for i := range k.Kept {
		kept := &k.Kept[i]
		kept.Keeper.Changes(func(partition int32, change []byte) {
			out.Emit(&pipeline.Record{Topic: kept.topic, Partition: partition, Value: change, Time: k.now()})
			kept.wrote = true
		})
	}
}

// rejected tells the stages that an event became a dead letter.
func (k *keepers) rejected(in *pipeline.Record) {
	for i := range k.Kept {
		k.Kept[i].Keeper.Undo(in.Partition, in.Offset)
	}
}

// endBatch tells the stages how the batch ended.
func (k *keepers) endBatch(committed bool) {
	for _, b := range k.ends {
		b.EndBatch(committed)
	}
	if len(k.Kept) == 0 || !committed {
		return
	}
	for i := range k.Kept {
		k.Kept[i].measure()
	}
	if now := k.now(); now.Sub(k.trimmed) >= trimEvery {
		k.trimmed = now
		for i := range k.Kept {
			if err := k.trim(&k.Kept[i]); err != nil {
				k.log.Warn("a state topic keeps what is no longer needed", "topic", k.Kept[i].topic, "err", err)
			}
		}
	}
}

// measure tells the metrics how much a stage remembers, which other sessions add
// to.
func (s *keptStage) measure() {
	entries, bytes := s.Keeper.Size()
	s.sizeGauge.Add(float64(entries - s.entries))
	s.bytesGauge.Add(float64(bytes - s.bytes))
	s.entries, s.bytes = entries, bytes
}

// How often records of a state topic are deleted, and how long that may take: the
// session waits for it.
const (
	trimEvery   = time.Minute
	trimTimeout = 2 * time.Second
)

// A mark says that all records before the end, when that was where committed
// records ended, came of events up to the newest one.
type mark struct{ end, newest int64 }

// trim deletes the records of a state topic from which nothing is remembered any
// more, and notes how far those go that are there now.
func (k *keepers) trim(s *keptStage) error {
	ctx, cancel := context.WithTimeout(context.Background(), trimTimeout)
	defer cancel()
	if s.wrote {
		ends, err := kafka.CommittedEnds(ctx, k.client, s.topic)
		if err != nil {
			return err
		}
		s.wrote = false
		for _, p := range k.partitions() {
			_, newest := s.Keeper.Needs(p)
			if marks := s.marks[p]; len(marks) == 0 || marks[len(marks)-1].end < ends[p] {
				s.marks[p] = append(marks, mark{ends[p], newest})
			}
		}
	}
	before := map[int32]int64{}
	for _, p := range k.partitions() {
		oldest, _ := s.Keeper.Needs(p)
		marks := s.marks[p]
		for len(marks) > 0 && marks[0].newest < oldest {
			before[p] = marks[0].end
			marks = marks[1:]
		}
		s.marks[p] = marks
	}
	if len(before) == 0 {
		return nil
	}
	return kafka.DeleteBefore(ctx, k.client, s.topic, before)
}
