package fold

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/metadata"
	"millrace/pipeline/identity"
)

// Semantics is the number of the meaning of a fold. A release that changes the meaning of
// expressions, or of the fold itself, takes the next number, and compiles folds of earlier
// numbers as far as it still implements them:
//
//	1  Tombstones are rejected. Ids of events are compared within the partition, and an id
//	   that may be null is none. Expressions compute and compare no
//	   decimals, name no time zones, and do not read the key and the headers of records.
//	2  Ids of events are compared within the aggregate, unless Spec.PartitionIDs is set.
const Semantics = 2

// withSemantics returns a Spec with the defaults of its semantics, or a fault if this
// program does not implement them.
func (s Spec) withSemantics() (Spec, []expr.Fault) {
	if s.Semantics == 0 {
		s.Semantics = Semantics
	}
	if s.Semantics < 1 || s.Semantics > Semantics {
		return s, []expr.Fault{{Source: s.Key, Msg: fmt.Sprintf("the fold has semantics %d, and this release has 1 to %d", s.Semantics, Semantics)}}
	}
	if s.Semantics == 1 {
		if s.UnusualTombstones {
			return s, []expr.Fault{{Source: s.Key, Msg: "with semantics 1, a topic declares no tombstones"}}
		}
		if !s.Keys.IsText() || s.Partitioner == pipeline.CRC32 {
			return s, []expr.Fault{{Source: s.Key, Msg: "with semantics 1, a topic declares no format of keys and no partitioner"}}
		}
		s.Tombstones = RejectTombstones
		s.PartitionIDs, s.Identity = true, nil
	}
	if s.Identity.IsID() {
		s.Identity = nil
	}
	if s.Semantics == 1 && s.Bare != nil {
		bare := *s.Bare
		bare.RecordKey = nil
		s.Bare = &bare
	}
	if s.Partitioner == "" {
		s.Partitioner = pipeline.Murmur2
	}
	s.AnyPartition = s.AnyPartition || s.Partitioner == pipeline.OtherPartitioner
	return s, nil
}

// recordKey returns the type of the keys of records in expressions; nil if expressions do
// not read the records.
func (s *Spec) recordKey() *metadata.Key {
	if s.Semantics == 1 {
		return nil
	}
	return metadata.KeyOf(s.Keys)
}

// unknown returns a fault if an expression over an event does not have the meaning any
// more that the semantics of the fold give it.
func (s *Spec) unknown(at expr.Source, schema *codec.Schema, programs ...*expr.Program) []expr.Fault {
	if s.Semantics > 1 {
		return nil
	}
	what := ""
	for _, p := range programs {
		switch {
		case p.UsesDecimals():
			what = "decimals"
		case p.UsesZones():
			what = "time zones"
		}
	}
	if what == "" {
		return nil
	}
	return []expr.Fault{{Source: at, Type: schema.Name(), Msg: fmt.Sprintf("the meaning of %s in expressions has changed since semantics 1", what)}}
}

// usesZones reports whether some expression names a time zone.
func (f *Fold) usesZones() bool {
	uses := func(p *expr.Program) bool { return p != nil && p.UsesZones() }
	return slices.ContainsFunc(f.types, func(t typeFold) bool {
		return slices.ContainsFunc(t.bare.Programs(), uses) || slices.ContainsFunc(t.rules, func(r rule) bool {
			return uses(r.when) || uses(r.deleteIf) || slices.ContainsFunc(r.sets, func(s set) bool { return uses(s.value) })
		})
	})
}

// hash identifies the effect of a fold: states computed under another hash are not
// valid for it. It covers the text of the fold, its meaning and the schema of the state.
func hash(spec Spec, zones bool, reads metadata.Use) string {
	h := sha256.New()
	fmt.Fprintf(h, "fold %d\n%s\nkey %q\nstate %q\n", spec.Semantics, spec.Name, spec.Key.Text, spec.State.String())
	if spec.MaxState > 0 {
		fmt.Fprintf(h, "max %d\n", spec.MaxState)
	}
	if spec.AnyPartition {
		fmt.Fprintf(h, "any partition\n")
	}
	if !spec.Keys.IsText() {
		fmt.Fprintf(h, "keys %s", spec.Keys.Kind)
		if s := spec.Keys.Schema; s != nil {
			fmt.Fprintf(h, " %q", s.String())
		}
		fmt.Fprintln(h)
	}
	if spec.Partitioner == pipeline.CRC32 && !spec.AnyPartition {
		fmt.Fprintf(h, "partitioner %s\n", spec.Partitioner)
	}
	if spec.Window.Size > 0 {
		fmt.Fprintf(h, "window %v\n", spec.Window)
	}
	if spec.Wait > 0 {
		fmt.Fprintf(h, "wait %d\n", spec.Wait)
	}
	if spec.ApplyGap {
		fmt.Fprintf(h, "apply gap\n")
	}
	if spec.Tombstones != RejectTombstones {
		fmt.Fprintf(h, "tombstones %d\n", spec.Tombstones)
	}
	if b := spec.Bare; b != nil {
		fmt.Fprintf(h, "bare %q %q %q\n", b.ID.Text, b.Time.Text, b.Key.Text)
	}
	if spec.Semantics > 1 && spec.PartitionIDs {
		fmt.Fprintf(h, "partition ids\n")
	}
	if len(spec.Identity) > 0 {
		fmt.Fprintf(h, "identity %q\n", spec.Identity)
	}
	if spec.Semantics > 1 && zones {
		fmt.Fprintf(h, "zones %s\n", expr.ZoneData)
	}
	// A field with one of these names, which a later schema may lack, has another value.
	if reads.Key {
		fmt.Fprintf(h, "record key\n")
	}
	if reads.AllHeaders || len(reads.Names) > 0 {
		fmt.Fprintf(h, "record headers\n")
	}
	on := slices.Clone(spec.On)
	slices.SortStableFunc(on, func(a, b On) int {
		return strings.Compare(spec.Types[a.Type].Name(), spec.Types[b.Type].Name())
	})
	for _, o := range on {
		fmt.Fprintf(h, "on %q delete %v\n", spec.Types[o.Type].Name(), o.Delete)
		if o.When.Text != "" || o.DeleteIf.Text != "" || o.Revive {
			fmt.Fprintf(h, "when %q delete if %q revive %v\n", o.When.Text, o.DeleteIf.Text, o.Revive)
		}
		for _, s := range o.Set {
			fmt.Fprintf(h, "set %q = %q\n", s.Field.Text, s.Value.Text)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// Hash identifies the effect of the fold, in 32 hexadecimal digits. States computed
// under another hash must be computed again.
func (f *Fold) Hash() string { return f.hash }

// Semantics returns the number of the meaning of the fold.
func (f *Fold) Semantics() int { return f.spec.Semantics }

// PartitionIDs reports whether the ids of events are compared within the partition.
// Otherwise they are compared within one aggregate.
func (f *Fold) PartitionIDs() bool { return f.spec.PartitionIDs }

// Scope returns the aggregate within which ids of its events are compared, nil for the
// partition. For a window, id is the key.
func (f *Fold) Scope(id []byte) []byte {
	if f.spec.PartitionIDs {
		return nil
	}
	return id
}

// Identity returns what makes two events the same event. It has one part if that is a
// text as it is.
func (f *Fold) Identity() identity.Identity { return f.spec.Identity }

// HasIdentity reports whether the identity of an event is more or other than its id, so
// that it may depend on the headers of the record.
func (f *Fold) HasIdentity() bool { return len(f.spec.Identity) > 0 }

// WithHash returns the fold, or the same declaration with other semantics, if that has
// the hash. It returns nil if this program does not implement it.
func (f *Fold) WithHash(hash string) *Fold {
	if f.hash == hash {
		return f
	}
	for n := range Semantics {
		spec := f.spec
		if spec.Semantics = n + 1; spec.Semantics == f.spec.Semantics {
			continue
		}
		if other, _ := Compile(spec); other != nil && other.hash == hash {
			return other
		}
	}
	return nil
}
