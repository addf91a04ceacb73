// Package control reads and writes the control topic, NAME-control. It records which
// versions of projections exist, which version is live, which aggregates were erased, and
// which worker has which partitions.
//
// Start reading at [State], which the records of the topic build up, and at [Follower]. All
// goroutines of a projector share one Follower; its lock is the only one of the package, and
// no callback runs while it is held. A [State] that [ReadState] or [Follower.Now] returns belongs
// to the caller.
package control

import (
	"strconv"
	"strings"
	"time"
)

// The control topic has one partition and is compacted. Its keys are listed below; the
// values are JSON. A null value deletes the record of its key. The processor keeps its
// record of the applied topology on the same topic, under a key without these prefixes.
//
//	projection/NAME/live            the live version: LiveRecord
//	projection/NAME/version/N       the definition of version N: VersionRecord
//	projection/NAME/diff            the last comparison of two versions: DiffRecord
//	projection/NAME/forgotten/ID    an erased aggregate: ForgottenRecord
//	worker/INSTANCE                 a worker's partitions and address: WorkerRecord
const (
	projectionPrefix = "projection/"

	// WorkerPrefix is the prefix of the keys of workers.
	WorkerPrefix = "worker/"
)

// Format is the version of the format of all records. A reader refuses other formats.
const Format = 1

// LiveKey returns the key of a projection's [LiveRecord].
func LiveKey(name string) string { return projectionPrefix + name + "/live" }

// DiffKey returns the key of a projection's [DiffRecord].
func DiffKey(name string) string { return projectionPrefix + name + "/diff" }

// VersionKey returns the key of the [VersionRecord] of version n.
func VersionKey(name string, n int) string {
	return projectionPrefix + name + "/version/" + strconv.Itoa(n)
}

// ForgottenKey returns the key of the [ForgottenRecord] of an aggregate.
func ForgottenKey(name, id string) string { return projectionPrefix + name + "/forgotten/" + id }

// LiveRecord names the version of a projection that answers queries. Writing it switches all
// workers to that version.
type LiveRecord struct {
	Format   int       `json:"format"`
	Version  int       `json:"version"`
	Previous int       `json:"previous,omitempty"` // the version before; rollback returns to it
	Time     time.Time `json:"time"`
	By       string    `json:"by"` // version of the program
}

// VersionRecord holds everything that a worker needs to build a version of a projection,
// independent of the worker's own topology.yaml.
type VersionRecord struct {
	Format     int        `json:"format"`
	Version    int        `json:"version"`
	Fold       string     `json:"fold"`               // hash of the fold, marked if Internal is set: see Hash
	Snapshots  string     `json:"snapshots"`          // topic
	Internal   string     `json:"internal,omitempty"` // topic of the internal records; "" if they are on Snapshots
	Group      string     `json:"group"`              // consumer group
	Definition Definition `json:"definition"`
	Time       time.Time  `json:"time"`
	By         string     `json:"by"` // version of the program
}

// internalMark follows the hash of the fold in a record with Internal. Releases that do not
// know the field do not run the version, because it is of a fold that they cannot compile.
const internalMark = "+internal"

// Hash returns the hash of the version's fold.
func (r *VersionRecord) Hash() string { return strings.TrimSuffix(r.Fold, internalMark) }

// SetInternal puts the internal records of the version on a topic of their own; "" puts them
// on Snapshots. A version keeps its topics for its life.
func (r *VersionRecord) SetInternal(topic string) {
	r.Fold, r.Internal = r.Hash(), topic
	if topic != "" {
		r.Fold += internalMark
	}
}

// isComplete reports whether the record is of version n, and its fields agree.
func (r *VersionRecord) isComplete(n int) bool {
	return r.Version == n && strings.HasSuffix(r.Fold, internalMark) == (r.Internal != "")
}

// DiffRecord is the result of a comparison of two versions. promote requires one.
type DiffRecord struct {
	Format     int             `json:"format"`
	Old        int             `json:"old"`
	New        int             `json:"new"`
	Offsets    map[int32]int64 `json:"offsets"` // of the comparison, by partition
	Aggregates int             `json:"aggregates"`
	Differ     int             `json:"differ"`
	Time       time.Time       `json:"time"`
	By         string          `json:"by"` // version of the program
}

// ForgottenRecord marks an erased aggregate, see [Fence].
type ForgottenRecord struct {
	Format int       `json:"format"`
	Time   time.Time `json:"time"`
	By     string    `json:"by"` // version of the program
}

// WorkerRecord holds a worker's partitions and its address.
type WorkerRecord struct {
	Format  int       `json:"format"`
	Address string    `json:"address"` // host:port of its HTTP server
	Epoch   int64     `json:"epoch"`   // start time of its process
	Time    time.Time `json:"time"`

	// Partitions holds the partitions that the worker answers for, by consumer group and topic.
	Partitions map[string]map[string][]int32 `json:"has"`

	// Replica means that the worker is in no group: it has all partitions, in addition to
	// their owners.
	Replica bool `json:"replica,omitempty"`

	offset int64 // of this record; if two workers claim a partition, the later record wins
}
