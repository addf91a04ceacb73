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
}

func newState() *State {
	return &State{
		Live: map[string]LiveRecord{}, Versions: map[string]map[int]VersionRecord{}, Diffs: map[string]DiffRecord{},
		Forgotten: map[string]map[string]ForgottenRecord{}, Workers: map[string]WorkerRecord{},
	}
}

// clone copies the maps. The records are shared: nothing changes them.
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

// apply applies a record of the topic. A value that is not valid, or is in another format, is
// a fatal error ([pipeline.ClassFatal]). Keys of other programs are skipped.
func (s *State) apply(r *pipeline.Record) error {
	key := string(r.Key)
	if instance, ok := strings.CutPrefix(key, WorkerPrefix); ok {
		w, err := takeValue(s.Workers, instance, r)
		if err == nil && w != nil {
			w.offset = r.Offset
			s.Workers[instance] = *w
		}
		return err
	}
	rest, ok := strings.CutPrefix(key, projectionPrefix)
	if !ok {
		return nil
	}
	name, what, _ := strings.Cut(rest, "/")
	var err error
	switch what, arg, _ := strings.Cut(what, "/"); what {
	case "live":
		_, err = takeValue(s.Live, name, r)
	case "diff":
		_, err = takeValue(s.Diffs, name, r)
	case "version":
		n, bad := strconv.Atoi(arg)
		if bad != nil {
			return fmt.Errorf("%s at offset %d: the key %q has no version number", r.Topic, r.Offset, key)
		}
		if s.Versions[name] == nil {
			s.Versions[name] = map[int]VersionRecord{}
		}
		_, err = takeValue(s.Versions[name], n, r)
	case "forgotten":
		if s.Forgotten[name] == nil {
			s.Forgotten[name] = map[string]ForgottenRecord{}
		}
		_, err = takeValue(s.Forgotten[name], arg, r)
	}
	return err
}

// takeValue sets or deletes an entry of m, and returns the new value. It refuses other
// formats, because acting on a partly understood record would be worse than stopping.
func takeValue[K comparable, V any](m map[K]V, k K, r *pipeline.Record) (*V, error) {
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
		return nil, pipeline.Fatal("%s at offset %d: %s is in format %d, but this program knows format %d: use the newer program", r.Topic, r.Offset, r.Key, head.Format, Format)
	}
	m[k] = *v
	return v, nil
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
