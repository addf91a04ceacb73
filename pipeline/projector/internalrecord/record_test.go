package internalrecord

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/query"
)

// The keys are read by other releases: they do not change.
func TestKeysOfRecordsAreStable(t *testing.T) {
	for _, tt := range []struct {
		key  string
		kind Kind
		id   string
	}{
		{"\x00checkpoint", OfCheckpoint, ""},
		{"\x00skipped", OfSkipped, ""},
		{"\x00sent", OfSent, ""},
		{"\x00blocked\x00user-1", OfBlocked, "user-1"},
		{"\x00blocked\x00\x00", OfBlocked, "\x00"},
		{"\x00blocked", OfLater, ""},
		{"\x00checkpoint2", OfLater, ""},
		{"\x00", OfLater, ""},
		{"", Other, ""},
		{"checkpoint", Other, ""},
		{"user-1", Other, ""},
	} {
		if kind, id := KindOf([]byte(tt.key)); kind != tt.kind || id != tt.id {
			t.Errorf("KindOf(%q) = %v, %q, want %v, %q", tt.key, kind, id, tt.kind, tt.id)
		}
	}
	if CheckpointKey != "\x00checkpoint" || SkippedKey != "\x00skipped" || SentKey != "\x00sent" || BlockedKey("a") != "\x00blocked\x00a" {
		t.Error("a key has changed")
	}
}

func TestNoIDOfAnAggregateIsTheKeyOfARecord(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{CheckpointKey, SkippedKey, SentKey, BlockedKey("a")})).Draw(t, "id")
		if kind, _ := KindOf([]byte(id)); kind != Other && fold.CheckID([]byte(id)) == nil {
			t.Errorf("%q is the id of an aggregate and of kind %v", id, kind)
		}
		if kind, of := KindOf([]byte(BlockedKey(id))); kind != OfBlocked || of != id {
			t.Errorf("the key of the blocked aggregate %q is of kind %v, of %q", id, kind, of)
		}
	})
}

func TestRecordsAreDecodedAsTheyWereEncoded(t *testing.T) {
	offsets := rapid.Int64Range(0, 1<<40)
	rapid.Check(t, func(t *rapid.T) {
		c := Checkpoint{Fold: rapid.StringMatching("[a-f0-9]{1,8}").Draw(t, "fold"), TopicID: "t-1", Dedupe: "index", Redo: offsets.Draw(t, "redo")}
		c.Next = c.Redo + offsets.Draw(t, "held")
		if rapid.Bool().Draw(t, "windows") {
			clock := rapid.Int64().Draw(t, "clock")
			c.Clock = &clock
		}
		if rapid.Bool().Draw(t, "loss") {
			c.Unread = []query.Unread{{From: 0, To: c.Redo, Noticed: pipeline.UnixMicro(1)}}
		}
		value, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		decoded, err := DecodeCheckpoint(value)
		if err != nil || decoded.Next != c.Next || decoded.Redo != c.Redo || (decoded.Clock == nil) != (c.Clock == nil) {
			t.Errorf("the checkpoint %s is decoded as %+v, %v", value, decoded, err)
		}
		if again, err := decoded.Encode(); err != nil || !bytes.Equal(again, value) {
			t.Errorf("the checkpoint %s is decoded as %s, %v", value, again, err)
		}

		skipped := map[int64]bool{}
		for _, offset := range rapid.SliceOf(offsets).Draw(t, "skipped") {
			skipped[offset] = true
		}
		if value, err = EncodeSkipped(skipped); err != nil {
			t.Fatal(err)
		}
		got, err := DecodeSkipped(value)
		if err != nil || len(got) != len(skipped) || !slices.IsSorted(got) || slices.ContainsFunc(got, func(offset int64) bool { return !skipped[offset] }) {
			t.Errorf("the skipped offsets %v are decoded as %v, %v", skipped, got, err)
		}

		sent := offsets.Draw(t, "sent")
		if got, err := DecodeSent(EncodeSent(sent)); err != nil || got != sent {
			t.Errorf("the offset %d is decoded as %d, %v", sent, got, err)
		}

		q := &Blocked{ID: rapid.StringMatching("[a-z]{1,8}").Draw(t, "id"), Offset: offsets.Draw(t, "offset"), Since: c.Redo, Reason: "bad", Held: rapid.SliceOf(offsets).Draw(t, "held offsets"), Time: pipeline.UnixMicro(2)}
		if value, err = q.Encode(); err != nil {
			t.Fatal(err)
		}
		back, err := DecodeBlocked(q.ID, value)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := back.Encode(); err != nil || !bytes.Equal(again, value) {
			t.Errorf("the blocked record %s is decoded as %s, %v", value, again, err)
		}
		if back.First() > back.Offset || len(q.Held) > 0 && back.First() > slices.Min(q.Held) {
			t.Errorf("the first event of %s that is not folded is %d", value, back.First())
		}
	})
}

func TestARecordThatClaimsWhatCannotBeIsRefused(t *testing.T) {
	for _, value := range []string{"", "x", "{}", `{"fold":"f","next":1,"redo":2}`, `{"fold":"f","next":1,"redo":-1}`, "null"} {
		if c, err := DecodeCheckpoint([]byte(value)); err == nil {
			t.Errorf("the checkpoint %q is read as %+v", value, c)
		}
	}
	for _, value := range []string{"", "x", "-1", "1.5", "99999999999999999999"} {
		if below, err := DecodeSent([]byte(value)); err == nil {
			t.Errorf("the offset %q is read as %d", value, below)
		}
	}
	for _, value := range []string{"", "x", "{}", `["1"]`} {
		if offsets, err := DecodeSkipped([]byte(value)); err == nil {
			t.Errorf("the skipped offsets %q are read as %v", value, offsets)
		}
	}
	if offsets, err := DecodeSkipped(nil); err != nil || len(offsets) > 0 {
		t.Errorf("a record without a value has the skipped offsets %v, %v", offsets, err)
	}
	for _, value := range []string{"", "{}", `{"id":"b","offset":1,"since":2}`, `{"id":"a","offset":-1}`, `{"id":"a","last":-1}`} {
		if q, err := DecodeBlocked("a", []byte(value)); err == nil {
			t.Errorf("the blocked record %q is read as %+v", value, q)
		}
	}
}

// Nothing that the log will be read again for is left in a record.
func TestABlockedRecordIsRewoundToACheckpoint(t *testing.T) {
	q := Blocked{ID: "a", Offset: 4, Since: 5, Queue: []int64{6, 8, 9}, Queued: 3, Last: 9}
	early := q.Clone()
	if early.Rewind(4) {
		t.Error("an aggregate that was blocked after the checkpoint is kept")
	}
	if !q.Rewind(8) || !slices.Equal(q.Queue, []int64{6}) || q.Queued != 1 || q.Last != 7 {
		t.Errorf("the record at offset 8 is %+v, want the queued event 6 only", q)
	}
}

func FuzzDecode(f *testing.F) {
	for _, key := range []string{CheckpointKey, SkippedKey, SentKey, BlockedKey("a"), "a", ""} {
		for _, value := range []string{"", "7", "[1]", `{"fold":"f","next":2,"redo":1}`, `{"id":"a","offset":1,"since":2,"queued":0}`} {
			f.Add([]byte(key), []byte(value))
		}
	}
	f.Fuzz(func(t *testing.T, key, value []byte) {
		switch kind, id := KindOf(key); kind {
		case OfCheckpoint:
			if c, err := DecodeCheckpoint(value); err == nil && (c.Redo < 0 || c.Next < c.Redo) {
				t.Errorf("%q is read as %+v", value, c)
			}
		case OfSkipped:
			_, _ = DecodeSkipped(value)
		case OfSent:
			if below, err := DecodeSent(value); below < 0 || err != nil && below != 0 {
				t.Errorf("%q is read as %d", value, below)
			}
		case OfBlocked:
			if q, err := DecodeBlocked(id, value); err == nil {
				q.Rewind(q.First())
				if _, err := q.Encode(); err != nil {
					t.Errorf("%q cannot be encoded again: %v", value, err)
				}
			}
		}
	})
}
