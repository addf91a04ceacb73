package expr

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/pipeline/codec"
)

// What is written of a time is what the standard library writes.
func TestTimesAreWrittenAsRFC3339(t *testing.T) {
	var w writtenTime
	rapid.Check(t, func(t *rapid.T) {
		at := instant{
			rapid.OneOf(rapid.Int64Range(minSecond, maxSecond), rapid.Int64Range(-100_000, 100_000)).Draw(t, "seconds"),
			rapid.OneOf(rapid.Just(int32(0)), rapid.Int32Range(0, 999_999_999), rapid.Map(rapid.Int32Range(0, 999), func(ms int32) int32 { return ms * 1_000_000 })).Draw(t, "nanoseconds"),
		}
		for range 2 { // the second time, from what it kept
			if got, want := string(w.append(nil, at)), at.time().Format(time.RFC3339Nano); got != want {
				t.Fatalf("got %s, want %s", got, want)
			}
			at.nano /= 1000
		}
	})
}

// A map with entries set is what a Go map makes of it; entries keep their order,
// and there is one block whatever there was before.
func TestEntriesAreReplacedOrAdded(t *testing.T) {
	node := schemaNamed(t, "OrderCreated").Root().Field("metadata").Type
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.Custom(func(t *rapid.T) string { return fmt.Sprint("k", rapid.IntRange(0, 120).Draw(t, "key")) })
		have := rapid.SliceOfNDistinct(key, 0, 100, rapid.ID).Draw(t, "have")
		set := rapid.SliceOfNDistinct(key, 0, 80, rapid.ID).Draw(t, "set")
		var enc []byte
		for block := range slices.Chunk(have, rapid.IntRange(1, 100).Draw(t, "block")) {
			var items []byte
			for _, k := range block {
				items = codec.AppendString(codec.AppendString(items, k), "old")
			}
			if rapid.Bool().Draw(t, "sized") {
				enc = codec.AppendLong(codec.AppendLong(enc, -int64(len(block))), int64(len(items)))
			} else {
				enc = codec.AppendLong(enc, int64(len(block)))
			}
			enc = append(enc, items...)
		}
		enc = append(enc, 0)
		var entries []Entry
		for _, k := range set {
			entries = append(entries, Entry{Key: []byte(k), Value: codec.AppendString(nil, "new")})
		}
		all := slices.Clone(have)
		for _, k := range set {
			if !slices.Contains(all, k) {
				all = append(all, k)
			}
		}
		var want []byte
		if len(all) > 0 {
			want = codec.AppendLong(nil, int64(len(all)))
		}
		for _, k := range all {
			value := "old"
			if slices.Contains(set, k) {
				value = "new"
			}
			want = codec.AppendString(codec.AppendString(want, k), value)
		}
		want = append(want, 0)
		before := []byte("before")
		got, err := AppendMap(before, node, enc, entries)
		if err != nil || !bytes.Equal(got, append([]byte("before"), want...)) {
			t.Fatalf("got  %q, %v\nwant %q", got, err, want)
		}
	})
}
