package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
)

// What projectors agree upon stands on the control topic, NAME-control: one
// partition, compacted, under these keys, values in JSON. A record without a
// value takes back what was said under its key. The processor's plan keeps a
// record of its own there, under deploymentKey.
//
//	projection/NAME/live            which version answers: liveRecord
//	projection/NAME/version/N       what version N is made by: versionRecord
//	projection/NAME/diff            how two versions differed: diffRecord
//	projection/NAME/forgotten/ID    an aggregate that must not come back: forgetRecord
//	worker/INSTANCE                 what a worker has, and where it is: workerRecord
const (
	controlFormat = 1

	controlProjection = "projection/"
	controlWorker     = "worker/"
)

// liveRecord says which version of a projection answers questions. Writing it is
// what flips the alias.
type liveRecord struct {
	Format   int       `json:"format"`
	Version  int       `json:"version"`
	Previous int       `json:"previous,omitempty"` // that answered before; what rollback goes back to
	Time     time.Time `json:"time"`
	By       string    `json:"by"` // version of the program
}

// versionRecord is all that is needed to make a version of a projection, by any
// worker, whatever its topology.yaml says.
type versionRecord struct {
	Format     int        `json:"format"`
	Version    int        `json:"version"`
	Fold       string     `json:"fold"` // hash
	Snapshots  string     `json:"snapshots"`
	Group      string     `json:"group"`
	Definition definition `json:"definition"`
	Time       time.Time  `json:"time"`
	By         string     `json:"by"`
}

// diffRecord is what promote wants to see: that somebody looked.
type diffRecord struct {
	Format     int             `json:"format"`
	Old        int             `json:"old"`
	New        int             `json:"new"`
	Offsets    map[int32]int64 `json:"offsets"` // at which they were compared
	Aggregates int             `json:"aggregates"`
	Differ     int             `json:"differ"`
	Time       time.Time       `json:"time"`
	By         string          `json:"by"`
}

// forgetRecord is the fence of an aggregate that was erased.
type forgetRecord struct {
	Format int       `json:"format"`
	Time   time.Time `json:"time"`
	By     string    `json:"by"`
}

// workerRecord says what a worker has.
type workerRecord struct {
	Format  int       `json:"format"`
	Address string    `json:"address"` // host:port of its HTTP server
	Epoch   int64     `json:"epoch"`   // of its process: when it started
	Time    time.Time `json:"time"`
	// Has are the partitions that it answers for, by consumer group and topic.
	Has map[string]map[string][]int32 `json:"has"`
	// Replica says that it is in no group: it has all partitions, beside their owners.
	Replica bool `json:"replica,omitempty"`

	offset int64 // of this record: of two that claim a partition, the later has it
}

// controlState is what stands on the control topic.
type controlState struct {
	live      map[string]liveRecord
	versions  map[string]map[int]versionRecord
	diffs     map[string]diffRecord
	forgotten map[string]map[string]forgetRecord
	workers   map[string]workerRecord
}

func newControlState() *controlState {
	return &controlState{
		live: map[string]liveRecord{}, versions: map[string]map[int]versionRecord{}, diffs: map[string]diffRecord{},
		forgotten: map[string]map[string]forgetRecord{}, workers: map[string]workerRecord{},
	}
}

func (s *controlState) clone() *controlState {
	out := &controlState{live: maps.Clone(s.live), versions: map[string]map[int]versionRecord{}, diffs: maps.Clone(s.diffs), forgotten: map[string]map[string]forgetRecord{}, workers: maps.Clone(s.workers)}
	for name, m := range s.versions {
		out.versions[name] = maps.Clone(m)
	}
	for name, m := range s.forgotten {
		out.forgotten[name] = maps.Clone(m)
	}
	return out
}

func liveKey(name string) string { return controlProjection + name + "/live" }
func diffKey(name string) string { return controlProjection + name + "/diff" }
func versionRecordKey(name string, n int) string {
	return controlProjection + name + "/version/" + strconv.Itoa(n)
}
func forgottenKey(name, id string) string { return controlProjection + name + "/forgotten/" + id }

// take takes in a record of the topic.
func (s *controlState) take(r *pipeline.Record) error {
	key := string(r.Key)
	if instance, ok := strings.CutPrefix(key, controlWorker); ok {
		w, err := controlValue(s.workers, instance, r)
		if err == nil && w != nil {
			w.offset = r.Offset
			s.workers[instance] = *w
		}
		return err
	}
	rest, ok := strings.CutPrefix(key, controlProjection)
	if !ok {
		return nil // another program's
	}
	name, what, _ := strings.Cut(rest, "/")
	var err error
	switch what, arg, _ := strings.Cut(what, "/"); what {
	case "live":
		_, err = controlValue(s.live, name, r)
	case "diff":
		_, err = controlValue(s.diffs, name, r)
	case "version":
		n, bad := strconv.Atoi(arg)
		if bad != nil {
			return fmt.Errorf("%s at offset %d: the key %q has no number", r.Topic, r.Offset, key)
		}
		if s.versions[name] == nil {
			s.versions[name] = map[int]versionRecord{}
		}
		_, err = controlValue(s.versions[name], n, r)
	case "forgotten":
		if s.forgotten[name] == nil {
			s.forgotten[name] = map[string]forgetRecord{}
		}
		_, err = controlValue(s.forgotten[name], arg, r)
	}
	return err
}

// controlValue sets or deletes an entry. What is of a newer format is refused:
// to act on half of what it says would be worse.
func controlValue[K comparable, V any](m map[K]V, k K, r *pipeline.Record) (*V, error) {
	if r.Value == nil {
		delete(m, k)
		return nil, nil
	}
	var head struct {
		Format int `json:"format"`
	}
	v := new(V)
	if err := errors.Join(json.Unmarshal(r.Value, &head), json.Unmarshal(r.Value, v)); err != nil {
		return nil, pipeline.Fatal("%s at offset %d, %s: %w", r.Topic, r.Offset, r.Key, err)
	}
	if head.Format != controlFormat {
		return nil, pipeline.Fatal("%s at offset %d: %s is in format %d, this program knows %d: use the newer program", r.Topic, r.Offset, r.Key, head.Format, controlFormat)
	}
	m[k] = *v
	return v, nil
}

// numbers returns the versions there are of a projection, in order.
func (s *controlState) numbers(name string) []int { return slices.Sorted(maps.Keys(s.versions[name])) }

// owner returns who answers for a partition: the last to have said so.
func (s *controlState) owner(group, topic string, partition int32) (instance string, w workerRecord, ok bool) {
	for name, candidate := range s.workers {
		if slices.Contains(candidate.Has[group][topic], partition) && (!ok || candidate.offset > w.offset) {
			instance, w, ok = name, candidate, true
		}
	}
	return instance, w, ok
}

// owners returns who answers for each partition of a topic, as owner does.
func (s *controlState) owners(group, topic string) map[int32]string {
	out := map[int32]string{}
	for name, w := range s.workers {
		for _, p := range w.Has[group][topic] {
			if before, ok := out[p]; !ok || s.workers[before].offset < w.offset {
				out[p] = name
			}
		}
	}
	return out
}

// controlSpec is how the control topic has to be.
func controlSpec(name string) kafka.TopicSpec {
	return kafka.TopicSpec{Name: name, Partitions: 1, Config: map[string]string{"cleanup.policy": "compact"}}
}

// readControl returns what stands on the control topic; nothing if there is none.
func readControl(ctx context.Context, cfg kafka.Config, topic string) (*controlState, error) {
	cluster, err := kafka.Describe(ctx, cfg, []string{topic}, nil, nil)
	if err != nil {
		return nil, err
	}
	if err := cluster.Hidden[topic]; err != nil {
		return nil, fmt.Errorf("topic %s, where versions of projections stand: %w", topic, err)
	}
	s := newControlState()
	if _, ok := cluster.Topics[topic]; !ok {
		return s, nil
	}
	_, err = kafka.ReadSettled(ctx, cfg, topic, 0, s.take)
	return s, err
}

// sayControl writes records to the control topic, in order, nil for a value that is
// taken back, and waits for them.
func sayControl(ctx context.Context, cfg kafka.Config, topic string, now time.Time, said ...controlSaid) error {
	records := make([]*pipeline.Record, len(said))
	for i, s := range said {
		records[i] = &pipeline.Record{Topic: topic, Key: []byte(s.key), Time: now}
		if s.value != nil {
			var err error
			if records[i].Value, err = json.Marshal(s.value); err != nil {
				return err
			}
		}
	}
	return kafka.WriteOnce(ctx, cfg, records...)
}

type controlSaid struct {
	key   string
	value any
}

// control follows the control topic.
type control struct {
	tail  *kafka.Tail
	topic string

	mu      sync.Mutex
	state   *controlState
	changed chan struct{} // closed with the next change
}

func newControl(cfg kafka.Config, topic string) *control {
	return &control{tail: kafka.NewTail(cfg, topic), topic: topic, state: newControlState(), changed: make(chan struct{})}
}

// run follows the topic until the context ends, or what it says cannot be
// understood.
func (c *control) run(ctx context.Context, say func(error)) error {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := c.tail.Run(ctx, func(r *pipeline.Record) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			if err := c.state.take(r); err != nil {
				return err
			}
			close(c.changed)
			c.changed = make(chan struct{})
			return nil
		})
		if ctx.Err() != nil {
			return nil
		}
		if pipeline.ClassOf(err) == pipeline.ClassFatal {
			return err
		}
		say(err)
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// now returns what the topic says, and a channel that is closed when it says
// something else.
func (c *control) now() (*controlState, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.clone(), c.changed
}

// hosts returns which workers there are, and a channel that is closed when that,
// or anything else, changes.
func (c *control) hosts() (*controlState, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &controlState{workers: maps.Clone(c.state.workers)}, c.changed
}
