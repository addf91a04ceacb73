// Package control reads and writes the control topic, NAME-control: which versions
// of projections there are, which one answers, which aggregates were erased, and
// which worker has which partition.
//
// Start at [State] and [Follower]. A Follower is shared by all goroutines.
package control

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
	"millrace/pipeline/topology"
)

func Topic(t *topology.Topology) string { return t.Name + "-control" }

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
	Format = 1

	controlProjection = "projection/"
	WorkerPrefix      = "worker/"
)

// LiveRecord says which version of a projection answers questions. Writing it is
// what flips the alias.
type LiveRecord struct {
	Format   int       `json:"format"`
	Version  int       `json:"version"`
	Previous int       `json:"previous,omitempty"` // that answered before; what rollback goes back to
	Time     time.Time `json:"time"`
	By       string    `json:"by"` // version of the program
}

// VersionRecord is all that is needed to make a version of a projection, by any
// worker, whatever its topology.yaml says.
type VersionRecord struct {
	Format     int        `json:"format"`
	Version    int        `json:"version"`
	Fold       string     `json:"fold"` // hash
	Snapshots  string     `json:"snapshots"`
	Group      string     `json:"group"`
	Definition definition `json:"definition"`
	Time       time.Time  `json:"time"`
	By         string     `json:"by"`
}

// DiffRecord is what promote wants to see: that somebody looked.
type DiffRecord struct {
	Format     int             `json:"format"`
	Old        int             `json:"old"`
	New        int             `json:"new"`
	Offsets    map[int32]int64 `json:"offsets"` // at which they were compared
	Aggregates int             `json:"aggregates"`
	Differ     int             `json:"differ"`
	Time       time.Time       `json:"time"`
	By         string          `json:"by"`
}

// ForgottenRecord is the fence of an aggregate that was erased.
type ForgottenRecord struct {
	Format int       `json:"format"`
	Time   time.Time `json:"time"`
	By     string    `json:"by"`
}

// WorkerRecord says what a worker has.
type WorkerRecord struct {
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

// State is what stands on the control topic.
type State struct {
	Live      map[string]LiveRecord
	Versions  map[string]map[int]VersionRecord
	Diffs     map[string]DiffRecord
	Forgotten map[string]map[string]ForgottenRecord
	Workers   map[string]WorkerRecord
}

func NewState() *State {
	return &State{
		Live: map[string]LiveRecord{}, Versions: map[string]map[int]VersionRecord{}, Diffs: map[string]DiffRecord{},
		Forgotten: map[string]map[string]ForgottenRecord{}, Workers: map[string]WorkerRecord{},
	}
}

func (s *State) clone() *State {
	out := &State{Live: maps.Clone(s.Live), Versions: map[string]map[int]VersionRecord{}, Diffs: maps.Clone(s.Diffs), Forgotten: map[string]map[string]ForgottenRecord{}, Workers: maps.Clone(s.Workers)}
	for name, m := range s.Versions {
		out.Versions[name] = maps.Clone(m)
	}
	for name, m := range s.Forgotten {
		out.Forgotten[name] = maps.Clone(m)
	}
	return out
}

func LiveKey(name string) string { return controlProjection + name + "/live" }
func DiffKey(name string) string { return controlProjection + name + "/diff" }
func VersionKey(name string, n int) string {
	return controlProjection + name + "/version/" + strconv.Itoa(n)
}
func ForgottenKey(name, id string) string { return controlProjection + name + "/forgotten/" + id }

// Take takes in a record of the topic.
func (s *State) Take(r *pipeline.Record) error {
	key := string(r.Key)
	if instance, ok := strings.CutPrefix(key, WorkerPrefix); ok {
		w, err := controlValue(s.Workers, instance, r)
		if err == nil && w != nil {
			w.offset = r.Offset
			s.Workers[instance] = *w
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
		_, err = controlValue(s.Live, name, r)
	case "diff":
		_, err = controlValue(s.Diffs, name, r)
	case "version":
		n, bad := strconv.Atoi(arg)
		if bad != nil {
			return fmt.Errorf("%s at offset %d: the key %q has no number", r.Topic, r.Offset, key)
		}
		if s.Versions[name] == nil {
			s.Versions[name] = map[int]VersionRecord{}
		}
		_, err = controlValue(s.Versions[name], n, r)
	case "forgotten":
		if s.Forgotten[name] == nil {
			s.Forgotten[name] = map[string]ForgottenRecord{}
		}
		_, err = controlValue(s.Forgotten[name], arg, r)
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
	if head.Format != Format {
		return nil, pipeline.Fatal("%s at offset %d: %s is in format %d, this program knows %d: use the newer program", r.Topic, r.Offset, r.Key, head.Format, Format)
	}
	m[k] = *v
	return v, nil
}

// Numbers returns the versions there are of a projection, in order.
func (s *State) Numbers(name string) []int { return slices.Sorted(maps.Keys(s.Versions[name])) }

// Owner returns who answers for a partition: the last to have said so.
func (s *State) Owner(group, topic string, partition int32) (instance string, w WorkerRecord, ok bool) {
	for name, candidate := range s.Workers {
		if slices.Contains(candidate.Has[group][topic], partition) && (!ok || candidate.offset > w.offset) {
			instance, w, ok = name, candidate, true
		}
	}
	return instance, w, ok
}

// Owners returns who answers for each partition of a topic, as owner does.
func (s *State) Owners(group, topic string) map[int32]string {
	out := map[int32]string{}
	for name, w := range s.Workers {
		for _, p := range w.Has[group][topic] {
			if before, ok := out[p]; !ok || s.Workers[before].offset < w.offset {
				out[p] = name
			}
		}
	}
	return out
}

// Spec is how the control topic has to be.
func Spec(name string) kafka.TopicSpec {
	return kafka.TopicSpec{Name: name, Partitions: 1, Config: map[string]string{"cleanup.policy": "compact"}}
}

// Read returns what stands on the control topic; nothing if there is none.
func Read(ctx context.Context, cfg kafka.Config, topic string) (*State, error) {
	cluster, err := kafka.Describe(ctx, cfg, []string{topic}, nil, nil)
	if err != nil {
		return nil, err
	}
	if err := cluster.Hidden[topic]; err != nil {
		return nil, fmt.Errorf("topic %s, where versions of projections stand: %w", topic, err)
	}
	s := NewState()
	if _, ok := cluster.Topics[topic]; !ok {
		return s, nil
	}
	_, err = kafka.ReadSettled(ctx, cfg, topic, 0, s.Take)
	return s, err
}

// Write writes records to the control topic, in order, nil for a value that is
// taken back, and waits for them.
func Write(ctx context.Context, cfg kafka.Config, topic string, now time.Time, said ...Record) error {
	records := make([]*pipeline.Record, len(said))
	for i, s := range said {
		records[i] = &pipeline.Record{Topic: topic, Key: []byte(s.Key), Time: now}
		if s.Value != nil {
			var err error
			if records[i].Value, err = json.Marshal(s.Value); err != nil {
				return err
			}
		}
	}
	return kafka.WriteOnce(ctx, cfg, records...)
}

type Record struct {
	Key   string
	Value any
}

// Follower follows the control topic.
type Follower struct {
	Tail  *kafka.Tail
	Topic string

	mu      sync.Mutex
	state   *State
	changed chan struct{} // closed with the next change
}

func NewFollower(cfg kafka.Config, topic string) *Follower {
	return &Follower{Tail: kafka.NewTail(cfg, topic), Topic: topic, state: NewState(), changed: make(chan struct{})}
}

// Run follows the topic until the context ends, or what it says cannot be
// understood.
func (c *Follower) Run(ctx context.Context, say func(error)) error {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := c.Tail.Run(ctx, c.Apply)
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

// Apply applies a record of the topic to the state.
func (c *Follower) Apply(r *pipeline.Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.state.Take(r); err != nil {
		return err
	}
	close(c.changed)
	c.changed = make(chan struct{})
	return nil
}

// Now returns what the topic says, and a channel that is closed when it says
// something else.
func (c *Follower) Now() (*State, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.clone(), c.changed
}

// Hosts returns which workers there are, and a channel that is closed when that,
// or anything else, changes.
func (c *Follower) Hosts() (*State, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &State{Workers: maps.Clone(c.state.Workers)}, c.changed
}
