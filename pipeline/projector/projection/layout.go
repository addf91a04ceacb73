package projection

import "millrace/pipeline/store"

// The families of entries that the store keeps of a lane, beside those of package
// states, which have the numbers 2 to 8.
const (
	familyMark          store.Family = 1  // facts about the lane itself
	familyHeld          store.Family = 9  // offset -> event that waits for an earlier one
	familyBlocked       store.Family = 10 // aggregate's id -> blocked
	familyShadowHeld    store.Family = 11
	familyShadowBlocked store.Family = 12
	familyDue           store.Family = 13 // ids of pending.Marks
	familyLetter        store.Family = 14 // offset of a late event whose dead letter is due -> starts of the windows it missed
	familyWindow        store.Family = 15 // start, aggregate's id
	familyOutOfOrder    store.Family = 16 // aggregate's id -> next offset when it changed: see pending.OutOfOrder
)

// Keys of familyMark.
var (
	// markPublished is the offset below which everything is in snapshots of committed
	// transactions, as far as this store knows.
	markPublished = []byte("published")
	markSkipped   = []byte("skipped")  // skipped offsets, in JSON
	markLoaded    = []byte("loaded")   // lane.loaded
	markSent      = []byte("sent")     // lane.letters, SentBelow
	markHeard     = []byte("heard")    // followed.heard, followed.published; followed.snapshots if Spec.Internal is set
	markUnread    = []byte("unread")   // lane.unread, in JSON
	markBackfill  = []byte("backfill") // next and until of the index; only while it is behind the states
)
