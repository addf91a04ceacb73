package query

import (
	"cmp"
	"net/http"
	"strings"
)

// A route is one question that can be asked.
type route struct {
	method  string // "": GET
	path    string
	name    string // for programs that are made from the document
	summary string
	params  []param
	answer  any // an example of what is answered, for its type; nil if that is not JSON
	also    map[int]string
	handle  func(*api, http.ResponseWriter, *http.Request)
}

// A param is a parameter of a route.
type param struct {
	name, in string // in: path, query or header
	kind     string // string, integer, boolean, or date-time or duration in a string
	doc      string
	example  any
	least    int
	most     int
	required bool
}

func (r *route) verb() string { return cmp.Or(r.method, http.MethodGet) }

// matches reports whether a path is one of the route.
func (r *route) matches(path string) bool {
	want, have := strings.Split(r.path, "/"), strings.Split(path, "/")
	if len(want) != len(have) {
		return false
	}
	for i := range want {
		if want[i] != have[i] && !strings.HasPrefix(want[i], "{") {
			return false
		}
	}
	return true
}

var (
	pName   = param{name: "name", in: "path", kind: "string", doc: "Of the projection.", example: "order", required: true}
	pID     = param{name: "id", in: "path", kind: "string", doc: "Of the aggregate.", example: "o-000001", required: true}
	pLimit  = param{name: "limit", in: "query", kind: "integer", doc: "Items of a page.", least: 1, most: maxLimit}
	pCursor = param{name: "cursor", in: "query", kind: "string", doc: "next_cursor of the page before. It is opaque, and stays good while the projection is the same."}
	pFilter = param{name: "filter", in: "query", kind: "string", example: "state.status == 'paid' && version > 1",
		doc: "A condition in CEL over id, version, deleted, event_id, event_time, event_offset and state.FIELD, typed by the state's schema."}

	fresh = []param{
		{name: "after_event", in: "query", kind: "string", doc: "Id of an event that the answer has to contain."},
		{name: "after_position", in: "query", kind: "string", example: "3:1234", doc: "Partition and offset of that event, as the producer was told: then it can be told that it was passed and not applied."},
		{name: "min_version", in: "query", kind: "integer", least: 1, doc: "Version that the aggregate must have, at least."},
		{name: "wait", in: "query", kind: "duration", example: "2s", doc: "How long to wait for that, at most 30s."},
	}
)

const (
	late504 = "What was to be waited for is not there (yet); outcome is pending."
	gone409 = "The event will never be in the state; outcome says why."
)

// routes returns all there is.
func routes() []*route {
	return []*route{
		{path: "/v1/openapi.json", name: "getOpenAPI", summary: "This document", handle: (*api).serveDocument},
		{path: "/v1/projections", name: "listProjections", summary: "All projections, and how far they are", answer: indexAnswer{}, handle: (*api).index},
		{path: "/v1/projections/{name}", name: "listAggregates", summary: "Aggregates of a projection",
			params: append([]param{pName, pFilter,
				{name: "sort", in: "query", kind: "string", example: "-state.total_amount", doc: "id, version, event_time or state.FIELD, with - before it for descending order. All but id look at every aggregate, 200000 at most."},
				pLimit, pCursor}, fresh[0], fresh[1], fresh[3]),
			answer: listAnswer{}, also: map[int]string{409: gone409, 422: "There are too many aggregates to sort.", 504: late504}, handle: (*api).list},
		{path: "/v1/projections/{name}/feed", name: "followProjection", summary: "Changes as they happen, as server-sent events",
			params: []param{pName,
				{name: "id", in: "query", kind: "string", doc: "Of the one aggregate to follow."}, pFilter,
				{name: "from", in: "query", kind: "string", example: "beginning", doc: "now, or beginning: all aggregates first."},
				{name: "Last-Event-ID", in: "header", kind: "string", example: "0-1200,3-57", doc: "Where to go on: the id of a message, from whichever worker."}},
			handle: (*api).feed},
		{path: "/v1/projections/{name}/{id}", name: "getAggregate", summary: "An aggregate now, or as it was",
			params: append([]param{pName, pID,
				{name: "at_version", in: "query", kind: "integer", least: 1, doc: "As of this version."},
				{name: "at_time", in: "query", kind: "date-time", example: "1997-12-31T00:00:00Z", doc: "As of a time, by the events' own timestamps: before the first event that is later."},
				{name: "at_recorded_time", in: "query", kind: "date-time", example: "1997-12-31T00:00:00Z", doc: "The same by the timestamps of their records."},
				{name: "If-None-Match", in: "header", kind: "string", doc: "ETag of an answer: 304 if it is the same."}}, fresh...),
			answer: getAnswer{}, also: map[int]string{304: "It is the same.", 409: gone409, 504: late504}, handle: (*api).get},
		{path: "/v1/projections/{name}/{id}/history", name: "getHistory", summary: "The events of an aggregate, the last first",
			params: []param{pName, pID, pLimit, {name: "before", in: "query", kind: "integer", least: 1, doc: "Those that made versions below."}},
			answer: historyAnswer{}, handle: (*api).history},
		{path: "/v1/projections/{name}/{id}/why", name: "getWhy", summary: "Which event last changed each field of an aggregate",
			params: []param{pName, pID}, answer: whyAnswer{}, handle: (*api).why},
		{path: "/v1/projections/{name}/{id}/diff", name: "getDiff", summary: "What differs between two versions of an aggregate",
			params: []param{pName, pID,
				{name: "from", in: "query", kind: "integer", doc: "The older version; 0 is before the first event. If left out, the one before the other."},
				{name: "to", in: "query", kind: "integer", least: 1, doc: "The newer version. If left out, the latest."}},
			answer: diffAnswer{}, handle: (*api).diff},
		{path: "/v1/events", name: "listEvents", summary: "Events of a type, the latest first",
			params: []param{{name: "type", in: "query", kind: "string", example: "OrderPaid", doc: "With or without its namespace.", required: true}, pLimit, pCursor},
			answer: eventsAnswer{}, handle: (*api).events},
		{path: "/v1/events/{id}", name: "getEvent", summary: "An event by its id",
			params: []param{{name: "id", in: "path", kind: "string", doc: "Of the event.", required: true}},
			answer: eventAnswer{}, handle: (*api).event},
		{path: "/v1/blocked/{name}", name: "listBlocked", summary: "Aggregates that wait for a release, the longest first",
			params: []param{pName, pLimit, pCursor}, answer: blockedAnswer{}, handle: (*api).blocked},
		{method: http.MethodPost, path: "/v1/blocked/{name}/{id}/release", name: "release", summary: "Fold again what a blocked aggregate missed",
			params: []param{pName, pID, {name: "skip", in: "query", kind: "boolean", doc: "Leave out the event at which it was blocked, or pass over the gap."}},
			answer: releasedAnswer{}, also: map[int]string{
				404: "There is no such aggregate, blocked or not.", 409: "It is not blocked.",
				504: "A worker was asked to do it and did not answer: it may be done or not."}, handle: (*api).release},
	}
}
