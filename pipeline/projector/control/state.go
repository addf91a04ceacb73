package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"millrace/pipeline"
)

// State is the content of the control topic: the last record of each key. Maps are by the
// name of the projection, Workers by instance.
type State struct {
	Live      map[string]LiveRecord
	Versions  map[string]map[int]VersionRecord // then by number
	Diffs     map[string]DiffRecord
	Forgotten map[string]map[string]ForgottenRecord // then by aggregate id
	Workers   map[string]WorkerRecord
	// Unreadable has the keys whose last record is not understood, with the reason. It has
	// no effect, and the record before it stays in force.
	Unreadable map[string]string
}

func newState() *State {
	return &State{
		Live: map[string]LiveRecord{}, Versions: map[string]map[int]VersionRecord{}, Diffs: map[string]DiffRecord{},
		Forgotten: map[string]map[string]ForgottenRecord{}, Workers: map[string]WorkerRecord{},
		Unreadable: map[string]string{},
	}
}

// clone copies the maps. The records are shared: nothing changes them.
func (s *State) clone() *State {
	out := &State{Live: maps.Clone(s.Live), Versions: map[string]map[int]VersionRecord{}, Diffs: maps.Clone(s.Diffs), Forgotten: map[string]map[string]ForgottenRecord{}, Workers: maps.Clone(s.Workers), Unreadable: maps.Clone(s.Unreadable)}
	for name, m := range s.Versions {
		out.Versions[name] = maps.Clone(m)
	}
	for name, m := range s.Forgotten {
		out.Forgotten[name] = maps.Clone(m)
	}
	return out
}

// apply applies a record of the topic. Keys of other programs are skipped, and so is a
// record that is not understood: it is noted in Unreadable. A record in a newer format is a
// fatal error ([pipeline.ClassFatal]).
func (s *State) apply(r *pipeline.Record) error {
	err := s.take(r)
	switch key := string(r.Key); {
	case err == nil:
		delete(s.Unreadable, key)
	case pipeline.ClassOf(err) != pipeline.ClassFatal:
		s.Unreadable[key] = fmt.Sprintf("offset %d: %s", r.Offset, err)
		return nil
	}
	return err
}

func (s *State) take(r *pipeline.Record) error {
	key := string(r.Key)
	if instance, ok := strings.CutPrefix(key, WorkerPrefix); ok {
		return takeValue(s.Workers, instance, r, func(w *WorkerRecord) bool {
			w.offset = r.Offset
			return instance != ""
		})
	}
	rest, ok := strings.CutPrefix(key, projectionPrefix)
	if !ok {
		return nil
	}
	name, what, _ := strings.Cut(rest, "/")
	switch what, arg, _ := strings.Cut(what, "/"); what {
	case "live":
		return takeValue(s.Live, name, r, func(v *LiveRecord) bool { return v.Version > 0 })
	case "diff":
		return takeValue(s.Diffs, name, r, func(v *DiffRecord) bool { return v.Old > 0 && v.New > 0 })
	case "version":
		n, _ := strconv.Atoi(arg)
		if n < 1 || VersionKey(name, n) != key {
			if r.Value == nil {
				return nil // it was not understood, and is gone
			}
			return errors.New("the key has no version number")
		}
		if s.Versions[name] == nil {
			s.Versions[name] = map[int]VersionRecord{}
		}
		return takeValue(s.Versions[name], n, r, func(v *VersionRecord) bool { return v.isComplete(n) })
	case "forgotten":
		if s.Forgotten[name] == nil {
			s.Forgotten[name] = map[string]ForgottenRecord{}
		}
		return takeValue(s.Forgotten[name], arg, r, func(*ForgottenRecord) bool { return arg != "" })
	}
	return nil
}

// takeValue sets or deletes an entry of m. It refuses a newer format as fatal, because acting
// on a partly understood record would be worse than stopping. complete reports whether a
// record has everything that it needs.
func takeValue[K comparable, V any](m map[K]V, k K, r *pipeline.Record, complete func(*V) bool) error {
	if r.Value == nil {
		delete(m, k)
		return nil
	}
	var head struct {
		Format int `json:"format"`
	}
	v := new(V)
	if err := json.Unmarshal(r.Value, &head); err != nil {
		return err
	}
	if head.Format > Format {
		return pipeline.Fatal("%s at offset %d: %s is in format %d, but this program knows format %d: use the newer program", r.Topic, r.Offset, r.Key, head.Format, Format)
	}
	if err := json.Unmarshal(r.Value, v); err != nil {
		return err
	}
	if head.Format < 1 || !complete(v) {
		return errors.New("the record is not complete")
	}
	m[k] = *v
	return nil
}

// Numbers returns the version numbers of a projection, in order.
func (s *State) Numbers(name string) []int { return slices.Sorted(maps.Keys(s.Versions[name])) }

// NextVersion returns the number of the next version of a projection. It is new, also after
// versions were retired.
func (s *State) NextVersion(name string) int {
	last := max(s.Live[name].Version, s.Live[name].Previous, s.Diffs[name].New)
	for n := range s.Versions[name] {
		last = max(last, n)
	}
	return last + 1
}

// Owner returns the worker that answers for a partition: of all workers that claim it, the
// one with the latest record.
func (s *State) Owner(group, topic string, partition int32) (instance string, w WorkerRecord, ok bool) {
	for name, candidate := range s.Workers {
		if slices.Contains(candidate.Partitions[group][topic], partition) && (!ok || candidate.offset > w.offset) {
			instance, w, ok = name, candidate, true
		}
	}
	return instance, w, ok
}

// Owners returns the workers that answer for the partitions of a topic, as [State.Owner]
// does for one partition.
func (s *State) Owners(group, topic string) map[int32]string {
	out := map[int32]string{}
	for name, w := range s.Workers {
		for _, p := range w.Partitions[group][topic] {
			if before, ok := out[p]; !ok || s.Workers[before].offset < w.offset {
				out[p] = name
			}
		}
	}
	return out
}
