package handover

import (
	"fmt"
	"testing"

	"millrace/pipeline/projector/internalrecord"
)

// at returns an aggregate that is blocked by the event at an offset, which cannot be folded.
func at(offset int64) *internalrecord.Blocked {
	return &internalrecord.Blocked{ID: "k", Offset: offset, Since: offset + 1, Reason: "bad_body"}
}

// gap returns an aggregate whose event at an offset waited until another one was read.
func gap(offset, until int64) *internalrecord.Blocked {
	return &internalrecord.Blocked{ID: "k", Offset: offset, Since: until, Reason: internalrecord.ReasonGap}
}

func lost(offset int64) *internalrecord.Blocked {
	return &internalrecord.Blocked{ID: "k", Offset: offset, Reason: internalrecord.ReasonBadSnapshot}
}

func TestWhatAnotherOwnerReleasedIsReleasedWhenItsEventsAreFolded(t *testing.T) {
	for _, test := range []struct {
		name         string
		mine, theirs *internalrecord.Blocked // nil: not blocked
		next         int64                   // everything below is folded here; there, it is 10
		want         string                  // what is to be released, and published
		waits        bool
	}{
		{"released there", at(3), nil, 10, "[k] []", true},
		{"released there, and behind", at(3), nil, 9, "[] []", true},
		{"released there, and ahead", at(3), nil, 20, "[k] []", true},
		{"blocked here by an event that the owner did not have", at(12), nil, 20, "[] []", false},
		{"blocked here by the next event", at(10), nil, 20, "[] []", false},
		{"blocked by the same event", at(3), at(3), 10, "[] []", false},
		{"blocked again there", at(3), at(6), 10, "[k] []", true},
		{"released here", nil, at(3), 10, "[] [k]", false},
		{"released and blocked again here", at(6), at(3), 10, "[] [k]", false},
		{"neither", nil, nil, 10, "[] []", false},
		{"a gap that was released there", gap(2, 6), nil, 10, "[k] []", true},
		{"the same gap, found later", gap(2, 6), gap(2, 8), 10, "[] []", false},
		{"a gap that is found with the next event", gap(2, 10), nil, 20, "[] []", false},
		{"a gap, and the event at which it was found", gap(2, 6), at(6), 10, "[k] []", true},
		{"the event at which a gap was found", at(6), gap(2, 6), 10, "[] [k]", false},
		{"lost here only", lost(77), nil, 10, "[k] []", true},
		{"lost here and there", lost(77), lost(77), 10, "[] []", false},
		{"lost there only", nil, lost(77), 10, "[] [k]", false},
		{"lost there, and an event at the same offset", at(7), lost(7), 10, "[k] []", true},
	} {
		blocked := map[string]*internalrecord.Blocked{}
		if test.mine != nil {
			blocked["k"] = test.mine
		}
		theirs := map[string]internalrecord.Place{}
		if test.theirs != nil {
			theirs["k"] = test.theirs.Place()
		}
		var h Heard
		h.HearAll(theirs, 10)
		todo := h.Overruled(test.next, blocked)
		if got := fmt.Sprint(todo.Release, todo.Publish); got != test.want || h.Waits() != test.waits {
			t.Errorf("%s: %s, want %s; it waits: %v", test.name, got, test.want, h.Waits())
		}
		if h.Done("k"); test.next >= 10 && h.Waits() {
			t.Errorf("%s: it waits after the release", test.name)
		}
	}
}

func TestAllRecordsAreReadOnlyIfASumDiffers(t *testing.T) {
	mine := map[string]*internalrecord.Blocked{"k": at(3), "j": {ID: "j", Offset: 30, Since: 31}}
	for name, test := range map[string]struct {
		sum  string
		next int64
		want bool
	}{
		"the same, but for a later event": {internalrecord.SumBlocked(map[string]*internalrecord.Blocked{"k": at(3)}, 10), 40, false},
		"none":                            {internalrecord.SumBlocked(nil, 10), 40, true},
		"another event":                   {internalrecord.SumBlocked(map[string]*internalrecord.Blocked{"k": at(4)}, 10), 40, true},
		"of an older release":             {"", 40, true},
		"behind":                          {"", 9, false},
	} {
		var h Heard
		h.Compare(10, test.sum)
		if todo := h.Overruled(test.next, mine); todo.ReadAll != test.want {
			t.Errorf("%s: all records are read: %v", name, todo.ReadAll)
		}
		if waits := test.want || test.next < 10; h.Waits() != waits {
			t.Errorf("%s: it waits: %v", name, h.Waits())
		}
	}
}

func TestAnEventThatWasSkippedHereAndFoldedThereIsAConflict(t *testing.T) {
	offsets := func(all ...int64) *internalrecord.Offsets {
		o := &internalrecord.Offsets{}
		for _, offset := range all {
			o.Add(offset)
		}
		return o
	}
	blocked := func(q *internalrecord.Blocked) map[string]*internalrecord.Blocked {
		return map[string]*internalrecord.Blocked{"k": q}
	}
	queued := at(1)
	queued.Queue = []int64{3}
	for _, test := range []struct {
		name    string
		here    Decided
		skipped *internalrecord.Offsets // there
		blocked *internalrecord.Blocked // there
		want    bool
	}{
		{"the same", Decided{Next: 10, Skipped: offsets(3)}, offsets(3), nil, false},
		{"skipped there, folded here", Decided{Next: 10, Skipped: offsets()}, offsets(3), nil, true},
		{"skipped there, not read here", Decided{Next: 3, Skipped: offsets()}, offsets(3), nil, false},
		{"skipped there, blocked here", Decided{Next: 10, Skipped: offsets(), Blocked: blocked(at(3))}, offsets(3), nil, false},
		{"skipped there, queued here", Decided{Next: 10, Skipped: offsets(), Blocked: blocked(queued)}, offsets(3), nil, false},
		{"skipped there, held here", Decided{Next: 10, Skipped: offsets(), Held: []int64{3}}, offsets(3), nil, false},
		{"skipped here, folded there", Decided{Next: 10, Skipped: offsets(3)}, offsets(), nil, true},
		{"skipped here, blocked there", Decided{Next: 10, Skipped: offsets(3)}, offsets(), at(3), false},
		{"skipped here, not read there", Decided{Next: 30, Skipped: offsets(20)}, offsets(), nil, false},
	} {
		theirs := &internalrecord.Records{Checkpoint: internalrecord.Checkpoint{Next: 10}, Skipped: *test.skipped, Blocked: map[string]internalrecord.Place{}}
		if test.blocked != nil {
			theirs.Blocked["k"] = test.blocked.Place()
		}
		if got := Conflicts(test.here, theirs); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}
