package projector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/projection"
)

// restores tracks how far this worker is with restoring partitions, or with building
// them for the first time: first the snapshots of each partition, then the tail of the
// log, up to its end when the partition was assigned. What is before the tail is read for
// its ids and for the history, and does not keep the worker from being ready. It is a
// [prometheus.Collector].
type restores struct {
	log *slog.Logger

	mu    sync.Mutex // guards the fields below, and the tasks
	tasks map[restoreTask]*restoreProgress
}

// The phases of a restore.
const (
	phaseSnapshots = "snapshots"
	phaseIDs       = "ids" // until then, the tail waits
	phaseTail      = "tail"
	phaseHistory   = "history"
)

// restoreTask names the restore of a partition.
type restoreTask struct {
	group, phase, topic string
	partition           int32
}

// restoreProgress is the progress of a task, in offsets.
type restoreProgress struct {
	from, next, end int64
	began           time.Time      // immutable
	reader          positionSource // has the position; nil if next is up to date; immutable
}

// positionSource returns the positions of partitions that are read.
type positionSource interface {
	Progress() []kafka.PartitionProgress
}

// restoreLogEvery is the interval of log lines about running restores.
const restoreLogEvery = 5 * time.Second

func newRestores(reg prometheus.Registerer, log *slog.Logger) *restores {
	r := &restores{log: log, tasks: map[restoreTask]*restoreProgress{}}
	reg.MustRegister(r)
	return r
}

// reader returns a function that reads snapshots for a group, and tracks its progress.
func (r *restores) reader(cfg kafka.Config, group string) projection.RestoreFunc {
	return func(ctx context.Context, topic string, partition int32, f func(*pipeline.Record) error) (int64, error) {
		return r.read(ctx, cfg, kafka.ReadPartition, group, topic, partition, 0, f)
	}
}

// settled is reader for the transactions that are open, too.
func (r *restores) settled(cfg kafka.Config, group string) projection.SettledFunc {
	return func(ctx context.Context, topic string, partition int32, from int64, f func(*pipeline.Record) error) (int64, error) {
		return r.read(ctx, cfg, kafka.ReadSettledFrom, group, topic, partition, from, f)
	}
}

// readFunc reads a partition from an offset.
type readFunc func(ctx context.Context, cfg kafka.Config, topic string, partition int32, from int64, f func(*pipeline.Record) error) (end int64, err error)

// read calls read, and tracks its progress.
func (r *restores) read(ctx context.Context, cfg kafka.Config, read readFunc, group, topic string, partition int32, from int64, f func(*pipeline.Record) error) (int64, error) {
	bounds, err := kafka.TopicBounds(ctx, cfg, topic, false)
	if err != nil {
		return 0, err
	}
	task := restoreTask{group, phaseSnapshots, topic, partition}
	b := bounds[partition]
	first := max(b.Start, from)
	r.set(task, &restoreProgress{from: first, next: first, end: max(b.End, first), began: time.Now()})
	defer r.drop(task)
	n := 0
	return read(ctx, cfg, topic, partition, from, func(in *pipeline.Record) error {
		if n++; n%1024 == 0 {
			r.reached(task, in.Offset+1)
		}
		return f(in)
	})
}

// addTail adds the task of reading the log from an offset to its current end.
func (r *restores) addTail(group string, reader positionSource, p kafka.Partition, from int64) {
	r.set(restoreTask{group, phaseTail, p.Topic, p.Partition}, &restoreProgress{from: from, next: from, end: p.End, began: time.Now(), reader: reader})
}

// addFill adds the tasks of reading the ids of the past and the history of a partition, if
// a set fills it.
func (r *restores) addFill(group string, set *projection.Set, p kafka.Partition) {
	for phase, source := range map[string]positionSource{phaseIDs: idsSource{set}, phaseHistory: historySource{set}} {
		if at, ok := positionOf(source, p.Topic, p.Partition); ok {
			r.set(restoreTask{group, phase, p.Topic, p.Partition}, &restoreProgress{from: at.Position, next: at.Position, end: at.End, began: time.Now(), reader: source})
		}
	}
}

// idsSource has the positions in the logs whose ids are read.
type idsSource struct{ set *projection.Set }

// Progress implements positionSource.
func (s idsSource) Progress() []kafka.PartitionProgress {
	ids, _ := s.set.FillProgress()
	return ids
}

// historySource has the positions of the histories that are filled.
type historySource struct{ set *projection.Set }

// Progress implements positionSource.
func (s historySource) Progress() []kafka.PartitionProgress {
	_, history := s.set.FillProgress()
	return history
}

// positionOf returns the position in a partition. ok is false if there is none.
func positionOf(s positionSource, topic string, partition int32) (at kafka.PartitionProgress, ok bool) {
	for _, at := range s.Progress() {
		if at.Topic == topic && at.Partition == partition {
			return at, true
		}
	}
	return at, false
}

// dropTasks drops the tasks of a partition that is revoked, done or not.
func (r *restores) dropTasks(group, topic string, partition int32) {
	for _, phase := range []string{phaseIDs, phaseTail, phaseHistory} {
		r.drop(restoreTask{group, phase, topic, partition})
	}
}

// dropGroup drops all tasks of a group.
func (r *restores) dropGroup(group string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for t := range r.tasks {
		if t.group == group {
			delete(r.tasks, t)
		}
	}
}

func (r *restores) set(t restoreTask, p *restoreProgress) {
	r.mu.Lock()
	r.tasks[t] = p
	r.mu.Unlock()
}

func (r *restores) reached(t restoreTask, next int64) {
	r.mu.Lock()
	if p := r.tasks[t]; p != nil {
		p.next = next
	}
	r.mu.Unlock()
}

func (r *restores) drop(t restoreTask) {
	r.mu.Lock()
	delete(r.tasks, t)
	r.mu.Unlock()
}

// behind reports whether a task is running.
func (r *restores) behind(t restoreTask) bool {
	r.refresh(func(one restoreTask) bool { return one == t })
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tasks[t] != nil
}

// refresh updates the tasks whose positions a reader has, and drops those that are done.
// It calls readers without the lock, because they have locks of their own.
func (r *restores) refresh(wanted func(restoreTask) bool) {
	for t, p := range r.snapshot() {
		if p.reader == nil || !wanted(t) {
			continue
		}
		at, reading := positionOf(p.reader, t.topic, t.partition)
		fills := t.phase == phaseIDs || t.phase == phaseHistory
		r.mu.Lock()
		if r.tasks[t] == p {
			if fills && reading {
				p.end = max(p.end, at.End)
			}
			p.next = max(p.next, min(at.Position, p.end))
			if p.next >= p.end || fills && !reading {
				delete(r.tasks, t)
			}
		}
		r.mu.Unlock()
	}
}

// snapshot returns the current tasks.
func (r *restores) snapshot() map[restoreTask]*restoreProgress {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.tasks)
}

// restoreSum is the progress of a group in a phase, for one topic.
type restoreSum struct {
	group, phase, topic string
	partitions          int // that are not done
	done, total         int64
	rate                float64 // offsets a second
}

// left returns the remaining time at the average speed so far, 0 if it is unknown.
func (s restoreSum) left() time.Duration {
	if s.rate <= 0 {
		return 0
	}
	return time.Duration(float64(s.total-s.done) / s.rate * float64(time.Second)).Round(100 * time.Millisecond)
}

func (s restoreSum) String() string {
	text := fmt.Sprintf("%s: reading the %s on %s, %d partitions left: %d of %d (%.0f%%)", s.group, s.phase, s.topic, s.partitions, s.done, s.total, 100*float64(s.done)/float64(max(1, s.total)))
	if s.rate > 0 {
		text += fmt.Sprintf(", %.0f a second, about %v left", s.rate, s.left())
	}
	return text
}

// sums returns the progress of all running tasks, in order.
func (r *restores) sums() (out []restoreSum) {
	r.refresh(func(restoreTask) bool { return true })
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for t, p := range r.tasks {
		i := slices.IndexFunc(out, func(s restoreSum) bool { return s.group == t.group && s.phase == t.phase && s.topic == t.topic })
		if i < 0 {
			out = append(out, restoreSum{group: t.group, phase: t.phase, topic: t.topic})
			i = len(out) - 1
		}
		s := &out[i]
		s.partitions++
		s.done += p.next - p.from
		s.total += p.end - p.from
		if took := now.Sub(p.began).Seconds(); took > 0 {
			s.rate += float64(p.next-p.from) / took
		}
	}
	slices.SortFunc(out, func(a, b restoreSum) int {
		return cmp.Or(cmp.Compare(a.group, b.group), cmp.Compare(a.phase, b.phase), cmp.Compare(a.topic, b.topic))
	})
	return out
}

// ready returns nil if the states of the groups are complete, else the progress of what is
// missing.
func (r *restores) ready(groups map[string]bool) error {
	return r.progress(func(s restoreSum) bool { return groups[s.group] && (s.phase == phaseSnapshots || s.phase == phaseTail) })
}

// history returns nil if no history is being filled, else the progress.
func (r *restores) history() error {
	return r.progress(func(s restoreSum) bool { return s.phase == phaseHistory })
}

// progress returns the progress of some tasks as an error, nil if there are none.
func (r *restores) progress(of func(restoreSum) bool) error {
	var faults []error
	for _, s := range r.sums() {
		if of(s) {
			faults = append(faults, errors.New(s.String()))
		}
	}
	return errors.Join(faults...)
}

// run logs the progress, every few seconds, until the context ends.
func (r *restores) run(ctx context.Context) error {
	tick := time.NewTicker(restoreLogEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for _, s := range r.sums() {
			r.log.Info("restoring", "group", s.group, "phase", s.phase, "topic", s.topic, "partitions", s.partitions,
				"done", s.done, "total", s.total, "rate", int64(s.rate), "left", s.left())
		}
	}
}

var (
	restoreLabels = []string{"group", "phase", "topic"}
	restoreRatio  = prometheus.NewDesc("millrace_restore_progress_ratio", "Progress of a restore or a rebuild, from 0 to 1; absent when it is done. Phases: snapshots, ids (until then the tail waits), tail, and history, which readiness does not wait for.", restoreLabels, nil)
	restoreETA    = prometheus.NewDesc("millrace_restore_eta_seconds", "Remaining time of a restore at its average speed.", restoreLabels, nil)
	restoreDone   = prometheus.NewDesc("millrace_restore_records", "Offsets that a restore has read.", restoreLabels, nil)
	restoreTotal  = prometheus.NewDesc("millrace_restore_records_expected", "Offsets that a restore has to read in total.", restoreLabels, nil)
)

// Describe implements [prometheus.Collector].
func (r *restores) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{restoreRatio, restoreETA, restoreDone, restoreTotal} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (r *restores) Collect(ch chan<- prometheus.Metric) {
	for _, s := range r.sums() {
		for d, v := range map[*prometheus.Desc]float64{
			restoreRatio: float64(s.done) / float64(max(1, s.total)), restoreETA: s.left().Seconds(),
			restoreDone: float64(s.done), restoreTotal: float64(s.total),
		} {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, s.group, s.phase, s.topic)
		}
	}
}
