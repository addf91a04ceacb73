package expr

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr/library"
	"millrace/pipeline/expr/raw"
)

// The cached text of a time is the same as that of the standard library.
func TestTimesAreFormattedAsRFC3339(t *testing.T) {
	var w timeText
	rapid.Check(t, func(t *rapid.T) {
		at := instant{
			rapid.OneOf(rapid.Int64Range(library.MinSecond, library.MaxSecond), rapid.Int64Range(-100_000, 100_000)).Draw(t, "seconds"),
			rapid.OneOf(rapid.Just(int32(0)), rapid.Int32Range(0, 999_999_999), rapid.Map(rapid.Int32Range(0, 999), func(ms int32) int32 { return ms * 1_000_000 })).Draw(t, "nanoseconds"),
		}
		for range 2 { // the second time is in the cached second
			if got, want := string(w.append(nil, at)), at.time().Format(time.RFC3339Nano); got != want {
				t.Fatalf("got %s, want %s", got, want)
			}
			at.nano /= 1000
		}
	})
}

// AppendMap replaces and adds entries like a Go map. Entries keep their order, and
// the result is one block for every encoding of the input.
func TestAppendMapReplacesOrAddsEntries(t *testing.T) {
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
		var entries []raw.Entry
		for _, k := range set {
			entries = append(entries, raw.Entry{Key: []byte(k), Value: codec.AppendString(nil, "new")})
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
		got, err := raw.AppendMap(before, node, enc, entries)
		if err != nil || !bytes.Equal(got, append([]byte("before"), want...)) {
			t.Fatalf("got  %q, %v\nwant %q", got, err, want)
		}
	})
}

// A MapUpdate caches its entries between events, but its result is always that of
// AppendMap with the current results of its programs. The maps, the fields and the
// time change between events.
func TestMapUpdateDoesNotReuseStaleEntries(t *testing.T) {
	schema := schemaNamed(t, "OrderCreated")
	node := schema.Root().Field("metadata").Type
	env := newEnv(t, Root{Schema: schema})
	// Tested for each prefix: a constant, a program with now(), one that reads a field.
	exprs := []string{"'bench'", "string(now())", "metadata.region"}
	layout, err := codec.NewLayout(schema, [][]string{{"metadata"}})
	if err != nil {
		t.Fatal(err)
	}
	body := encodeJSON(t, schema, orderBody)
	var view pipeline.View
	if err := layout.Walk(body, &view); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= len(exprs); n++ {
		var programs []*Program
		keys := [][]byte{[]byte("pipeline"), []byte("k7"), []byte("k8")}[:n]
		for _, src := range exprs[:n] {
			p, err := env.Compile(src, Value(node.Elem, "metadata", "OrderCreated"))
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Bind(layout); err != nil {
				t.Fatal(err)
			}
			programs = append(programs, p)
		}
		update := NewMapUpdate(node, keys, programs)
		if update.steady != (n < 3) {
			t.Errorf("%q: steady is %t, want %t", exprs[:n], update.steady, n < 3)
		}
		var s, fresh Scope
		rapid.Check(t, func(t *rapid.T) {
			enc := codec.AppendLong(nil, 2)
			for range 2 {
				enc = codec.AppendString(codec.AppendString(enc, fmt.Sprint("k", rapid.IntRange(0, 9).Draw(t, "key"))), "old")
			}
			enc = append(enc, 0)
			region := rapid.SampledFrom([]string{"eu", "us"}).Draw(t, "region")
			view.Set(0, append(codec.AppendString(codec.AppendString([]byte{2}, "region"), region), 0))
			received := at.Add(time.Duration(rapid.IntRange(0, 2).Draw(t, "seconds")) * time.Second)
			s.Reset(received, &view)
			fresh = Scope{}
			fresh.Reset(received, &view)
			var set []raw.Entry
			for i, p := range programs {
				value, err := p.AppendIn(&fresh, nil)
				if err != nil {
					t.Fatal(err)
				}
				set = append(set, raw.Entry{Key: keys[i], Value: value})
			}
			want, err := raw.AppendMap([]byte("before"), node, enc, set)
			if err != nil {
				t.Fatal(err)
			}
			got, err := update.Append([]byte("before"), &s, enc)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("got  %q, %v\nwant %q", got, err, want)
			}
		})
	}
}

// A MapUpdate whose program fails appends nothing, and works again for the next
// event.
func TestMapUpdateRecoversFromAnError(t *testing.T) {
	schema := schemaNamed(t, "OrderCreated")
	node := schema.Root().Field("metadata").Type
	p, err := newEnv(t, Root{Schema: schema}).Compile("metadata.region", Value(node.Elem, "metadata", "OrderCreated"))
	if err != nil {
		t.Fatal(err)
	}
	layout, err := codec.NewLayout(schema, [][]string{{"metadata"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Bind(layout); err != nil {
		t.Fatal(err)
	}
	var view pipeline.View
	if err := layout.Walk(encodeJSON(t, schema, orderBody), &view); err != nil {
		t.Fatal(err)
	}
	update := NewMapUpdate(node, [][]byte{[]byte("to")}, []*Program{p})
	var s Scope
	for _, test := range []struct{ metadata, want string }{
		{"\x02\x0cregion\x04eu\x00", "\x02\x04to\x04eu\x00"},
		{"\x00", ""},
		{"\x02\x0cregion\x04us\x00", "\x02\x04to\x04us\x00"},
	} {
		view.Set(0, []byte(test.metadata))
		s.Reset(at, &view)
		got, err := update.Append(nil, &s, []byte{0})
		if string(got) != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%q: got %q, %v, want %q", test.metadata, got, err, test.want)
		}
	}
}
