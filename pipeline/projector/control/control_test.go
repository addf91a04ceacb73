package control

import (
	"encoding/json"
	"strings"
	"testing"

	"millrace/pipeline"
)

func controlRecord(t testing.TB, offset int64, key string, value any) *pipeline.Record {
	t.Helper()
	r := &pipeline.Record{Topic: "shop-control", Key: []byte(key), Offset: offset}
	if value != nil {
		var err error
		if r.Value, err = json.Marshal(value); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func TestTheLastRecordOfEachKeyIsTheState(t *testing.T) {
	s := newState()
	for i, r := range []struct {
		key   string
		value any
	}{
		{VersionKey("user", 1), VersionRecord{Format: 1, Version: 1, Fold: "a"}},
		{VersionKey("user", 2), VersionRecord{Format: 1, Version: 2, Fold: "b"}},
		{VersionKey("user", 10), VersionRecord{Format: 1, Version: 10, Fold: "c"}},
		{LiveKey("user"), LiveRecord{Format: 1, Version: 1}},
		{LiveKey("user"), LiveRecord{Format: 1, Version: 10, Previous: 1}},
		{VersionKey("user", 2), nil},
		{ForgottenKey("user", "a/b live"), ForgottenRecord{Format: 1}},
		{ForgottenKey("order", "o-1"), ForgottenRecord{Format: 1}},
		{ForgottenKey("order", "o-1"), nil},
		{"topology", map[string]int{"format": 77}}, // a record of the processor
	} {
		if err := s.apply(controlRecord(t, int64(i), r.key, r.value)); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Numbers("user"); len(n) != 2 || n[0] != 1 || n[1] != 10 {
		t.Errorf("versions %v", n)
	}
	if live := s.Live["user"]; live.Version != 10 || live.Previous != 1 {
		t.Errorf("live %+v", live)
	}
	if _, ok := s.Forgotten["user"]["a/b live"]; !ok || len(s.Forgotten["order"]) != 0 {
		t.Errorf("forgotten %v", s.Forgotten)
	}
}

func TestTheLaterOfTwoWorkersThatClaimAPartitionOwnsIt(t *testing.T) {
	s := newState()
	has := func(ps ...int32) map[string]map[string][]int32 {
		return map[string]map[string][]int32{"g": {"events": ps}}
	}
	for i, r := range []struct {
		worker string
		value  any
		owner  string // of partition 3 after the record
	}{
		{"a", WorkerRecord{Format: 1, Address: "a:1", Partitions: has(0, 3)}, "a"},
		{"b", WorkerRecord{Format: 1, Address: "b:1", Partitions: has(1)}, "a"},
		{"b", WorkerRecord{Format: 1, Address: "b:1", Partitions: has(1, 3)}, "b"},
		{"a", WorkerRecord{Format: 1, Address: "a:1", Partitions: has(0)}, "b"},
		{"b", nil, ""},
		{"a", WorkerRecord{Format: 1, Address: "a:2", Partitions: has(0, 3)}, "a"},
	} {
		if err := s.apply(controlRecord(t, int64(i), WorkerPrefix+r.worker, r.value)); err != nil {
			t.Fatal(err)
		}
		owner, _, _ := s.Owner("g", "events", 3)
		if owner != r.owner {
			t.Errorf("after record %d the owner of partition 3 is %q, want %q", i, owner, r.owner)
		}
	}
}

func TestRecordsInAnotherFormatAreRefused(t *testing.T) {
	for _, key := range []string{LiveKey("user"), VersionKey("user", 2), DiffKey("user"), ForgottenKey("user", "u"), WorkerPrefix + "w"} {
		err := newState().apply(controlRecord(t, 5, key, map[string]int{"format": 2}))
		if err == nil || !strings.Contains(err.Error(), "use the newer program") || pipeline.ClassOf(err) != pipeline.ClassFatal {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// A record that is not understood changes nothing: the record before it is in force, the
// key is noted until a good record or a null comes, and the records after it are applied.
func TestARecordThatIsNotUnderstoodIsSkipped(t *testing.T) {
	s := newState()
	good := controlRecord(t, 0, LiveKey("user"), LiveRecord{Format: 1, Version: 3})
	if err := s.apply(good); err != nil {
		t.Fatal(err)
	}
	keys := []string{LiveKey("user"), WorkerPrefix + "x", WorkerPrefix, DiffKey("user"), VersionKey("user", 1), ForgottenKey("user", "u"), ForgottenKey("user", ""),
		"projection/user/version/abc", "projection/user/version/007", "projection/user/version/-1", "projection/user/version/"}
	for _, value := range []string{"{", "", "{}", "null", "[]", `"x"`, `{"format":"1"}`, `{"format":-1}`, `{"format":1,"time":7}`} {
		for i, key := range keys {
			if err := s.apply(&pipeline.Record{Key: []byte(key), Value: []byte(value), Offset: int64(i)}); err != nil {
				t.Fatalf("%q under %s: %v", value, key, err)
			}
			if _, ok := s.Unreadable[key]; !ok {
				t.Errorf("%q under %s is not noted", value, key)
			}
		}
	}
	if s.Live["user"].Version != 3 || len(s.Workers)+len(s.Diffs)+len(s.Versions["user"])+len(s.Forgotten["user"]) > 0 {
		t.Errorf("the state is %+v", s)
	}
	for _, key := range keys {
		r := &pipeline.Record{Key: []byte(key)}
		if key == LiveKey("user") {
			r = good
		}
		if err := s.apply(r); err != nil {
			t.Fatal(err)
		}
	}
	for key, why := range s.Unreadable {
		t.Errorf("%s is still noted: %s", key, why)
	}
}

func FuzzControl(f *testing.F) {
	f.Add(LiveKey("user"), []byte(`{"format":1,"version":2}`))
	f.Add(VersionKey("user", 3), []byte(`{"format":1,"version":3,"definition":{"topology":"name: x"}}`))
	f.Add("projection/", []byte(`{}`))
	f.Add(WorkerPrefix, []byte(`{"format":1,"has":{"g":{"t":[1]}}}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		s := newState()
		if err := s.apply(&pipeline.Record{Key: []byte(key), Value: value}); err != nil {
			if !strings.Contains(err.Error(), "use the newer program") {
				t.Fatal(err)
			}
		} else {
			s.clone()
			for _, versions := range s.Versions {
				for _, v := range versions {
					_, _, _ = v.Definition.Compile(nil) // it can fail, but must not panic
				}
			}
		}
	})
}

// A release that does not know the field Internal compares the field Fold with the hashes
// of its folds.
func TestAVersionWithATopicOfInternalRecordsIsOfNoFoldToEarlierReleases(t *testing.T) {
	record := VersionRecord{Format: 1, Version: 2, Fold: "abc", Snapshots: "s.v2"}
	plain, err := json.Marshal(record)
	if err != nil || strings.Contains(string(plain), "internal") {
		t.Errorf("a version without the topic is recorded as %s, %v", plain, err)
	}
	record.SetInternal("s.v2.internal")
	record.SetInternal("s.v2.internal")
	value, err := json.Marshal(record)
	if err != nil {
		t.Fatal(err)
	}
	var old struct {
		Format int
		Fold   string
	}
	if err := json.Unmarshal(value, &old); err != nil || old.Format != 1 || old.Fold == "abc" {
		t.Errorf("an earlier release reads %s as %+v, %v", value, old, err)
	}
	s := newState()
	key := []byte(VersionKey("user", 2))
	if err := s.apply(&pipeline.Record{Key: key, Value: value}); err != nil || s.Versions["user"][2].Internal != "s.v2.internal" {
		t.Errorf("the record is read as %+v, %v", s.Versions, err)
	}
	if got := s.Versions["user"][2]; got.Hash() != "abc" {
		t.Errorf("the hash is %s, want abc", got.Hash())
	}
	for _, bad := range []string{`{"format":1,"version":2,"fold":"abc","internal":"s"}`, `{"format":1,"version":2,"fold":"abc+internal"}`} {
		s := newState()
		if err := s.apply(&pipeline.Record{Key: key, Value: []byte(bad)}); err != nil || len(s.Versions["user"]) > 0 || len(s.Unreadable) != 1 {
			t.Errorf("%s is read as %+v, %v, unreadable %v", bad, s.Versions, err, s.Unreadable)
		}
	}
}
