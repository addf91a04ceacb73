package app

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

func TestTheControlTopicSaysWhatTheLastRecordOfEachKeySays(t *testing.T) {
	s := newControlState()
	for i, r := range []struct {
		key   string
		value any
	}{
		{versionRecordKey("user", 1), versionRecord{Format: 1, Version: 1, Fold: "a"}},
		{versionRecordKey("user", 2), versionRecord{Format: 1, Version: 2, Fold: "b"}},
		{versionRecordKey("user", 10), versionRecord{Format: 1, Version: 10, Fold: "c"}},
		{liveKey("user"), liveRecord{Format: 1, Version: 1}},
		{liveKey("user"), liveRecord{Format: 1, Version: 10, Previous: 1}},
		{versionRecordKey("user", 2), nil},
		{forgottenKey("user", "a/b live"), forgetRecord{Format: 1}},
		{forgottenKey("order", "o-1"), forgetRecord{Format: 1}},
		{forgottenKey("order", "o-1"), nil},
		{deploymentKey, map[string]int{"format": 77}}, // the processor's
	} {
		if err := s.take(controlRecord(t, int64(i), r.key, r.value)); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.numbers("user"); len(n) != 2 || n[0] != 1 || n[1] != 10 {
		t.Errorf("versions %v", n)
	}
	if live := s.live["user"]; live.Version != 10 || live.Previous != 1 {
		t.Errorf("live %+v", live)
	}
	if _, ok := s.forgotten["user"]["a/b live"]; !ok || len(s.forgotten["order"]) != 0 {
		t.Errorf("forgotten %v", s.forgotten)
	}
}

func TestOfTwoWorkersThatClaimAPartitionTheLaterHasIt(t *testing.T) {
	s := newControlState()
	has := func(ps ...int32) map[string]map[string][]int32 {
		return map[string]map[string][]int32{"g": {"events": ps}}
	}
	for i, r := range []struct {
		worker string
		value  any
		owner  string // of partition 3, after it
	}{
		{"a", workerRecord{Format: 1, Address: "a:1", Has: has(0, 3)}, "a"},
		{"b", workerRecord{Format: 1, Address: "b:1", Has: has(1)}, "a"},
		{"b", workerRecord{Format: 1, Address: "b:1", Has: has(1, 3)}, "b"},
		{"a", workerRecord{Format: 1, Address: "a:1", Has: has(0)}, "b"},
		{"b", nil, ""},
		{"a", workerRecord{Format: 1, Address: "a:2", Has: has(0, 3)}, "a"},
	} {
		if err := s.take(controlRecord(t, int64(i), controlWorker+r.worker, r.value)); err != nil {
			t.Fatal(err)
		}
		owner, _, _ := s.owner("g", "events", 3)
		if owner != r.owner {
			t.Errorf("after record %d partition 3 is with %q, want %q", i, owner, r.owner)
		}
	}
}

func TestWhatANewerProgramSaidIsRefusedAndNotGuessed(t *testing.T) {
	for _, key := range []string{liveKey("user"), versionRecordKey("user", 2), diffKey("user"), forgottenKey("user", "u"), controlWorker + "w"} {
		err := newControlState().take(controlRecord(t, 5, key, map[string]int{"format": 2}))
		if err == nil || !strings.Contains(err.Error(), "use the newer program") || pipeline.ClassOf(err) != pipeline.ClassFatal {
			t.Errorf("%s: %v", key, err)
		}
	}
}

func FuzzControl(f *testing.F) {
	f.Add(liveKey("user"), []byte(`{"format":1,"version":2}`))
	f.Add(versionRecordKey("user", 3), []byte(`{"format":1,"version":3,"definition":{"topology":"name: x"}}`))
	f.Add("projection/", []byte(`{}`))
	f.Add(controlWorker, []byte(`{"format":1,"has":{"g":{"t":[1]}}}`))
	f.Fuzz(func(_ *testing.T, key string, value []byte) {
		s := newControlState()
		if s.take(&pipeline.Record{Key: []byte(key), Value: value}) == nil {
			s.clone()
			for _, versions := range s.versions {
				for _, v := range versions {
					_, _, _ = v.Definition.compile(nil) // it may fail, and must not panic
				}
			}
		}
	})
}
