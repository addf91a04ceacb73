package projector

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/projection"
	"millrace/pipeline/worker"
)

// erase erases what a loop has of aggregates that are to be forgotten.
func (l *versionLoop) erase(ctx context.Context) error {
	for _, r := range l.everyReader() {
		units := r.Set.Assigned()
		ids := r.Projection.Fence.IDs.Load()
		if ids == nil {
			continue
		}
		for id := range *ids {
			for _, u := range units {
				for _, lane := range u.Lanes {
					if lane.Projection != r.Projection || l.wasErased(lane, id) {
						continue
					}
					if err := r.Erase(ctx, u, lane, id); err != nil {
						return fmt.Errorf("erasing an aggregate of %s, partition %d: %w", r.Projection.Label(), u.Partition, err)
					}
					l.erasedMu.Lock()
					l.erased[erasedKey{lane, id}] = true
					l.erasedMu.Unlock()
				}
			}
		}
	}
	return nil
}

// erasedKey is an aggregate that is not in a lane any more.
type erasedKey struct {
	lane *projection.Lane
	id   string
}

func (l *versionLoop) wasErased(lane *projection.Lane, id string) bool {
	l.erasedMu.Lock()
	defer l.erasedMu.Unlock()
	return l.erased[erasedKey{lane, id}]
}

// forgotten is what a worker says who is asked whether it has forgotten.
type forgotten struct {
	Versions   []string `json:"versions"`
	Partitions []int32  `json:"partitions"` // that it has, of any of them
}

// serveForgotten answers when nothing is left of an aggregate on this worker's
// disk.
func (v *versions) serveForgotten(w http.ResponseWriter, r *http.Request) {
	out := forgotten{Versions: []string{}, Partitions: []int32{}}
	name, id := r.PathValue("name"), r.PathValue("id")
	for _, l := range v.all() {
		subjects := v.keys != nil && slices.ContainsFunc(l.wanted, func(w wantedVersion) bool { return w.name == name && w.projection.Subjects })
		for _, reader := range l.everyReader() {
			if reader.Projection.Name() != name {
				continue
			}
			if !reader.Projection.Fence.Has([]byte(id)) || subjects && !v.keys.Forgotten(id) {
				http.Error(w, "this worker has not heard of it yet", http.StatusConflict)
				return
			}
			if err := l.erase(r.Context()); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			out.Versions = append(out.Versions, reader.Projection.Label())
			_, units := reader.Lanes()
			for _, u := range units {
				for _, lane := range u.Lanes {
					if lane.Projection != reader.Projection || kafka.PartitionOf([]byte(id), reader.NumPartitions) != u.Partition && !lane.Fold.AnyPartition() {
						continue
					}
					if err := lane.Part.Purge(); err != nil {
						http.Error(w, err.Error(), http.StatusInternalServerError)
						return
					}
					out.Partitions = append(out.Partitions, u.Partition)
				}
			}
		}
	}
	worker.WriteJSON(w, http.StatusOK, out)
}
