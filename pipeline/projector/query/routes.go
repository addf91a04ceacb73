package query

import (
	"cmp"
	"net/http"
	"strings"
)

// A route is an endpoint of the API.
type route struct {
	method  string // "" means GET
	path    string
	name    string // operationId, which code generators use as the method name
	summary string
	params  []param
	answer  any            // zero value of the answer's type; nil if the answer has no schema
	also    map[int]string // further status codes, with their descriptions
	handle  func(*api, http.ResponseWriter, *http.Request)
}

// A param is a parameter of a route.
type param struct {
	name, in string // in: path, query or header
	kind     string // string, integer, boolean, date-time or duration (both as strings)
	doc      string
	example  any
	least    int // minimum of an integer
	most     int // maximum of an integer; 0 means none
	required bool
}

func (r *route) verb() string { return cmp.Or(r.method, http.MethodGet) }

// pattern returns the pattern of [http.ServeMux].
func (r *route) pattern() string { return r.verb() + " " + r.path }

// Patterns returns the patterns of all routes.
func Patterns() (out []string) {
	for _, r := range routes() {
		out = append(out, r.pattern())
	}
	return out
}

// matches reports whether the route serves a path.
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
	pName   = param{name: "name", in: "path", kind: "string", doc: "Name of the projection.", example: "order", required: true}
	pID     = param{name: "id", in: "path", kind: "string", doc: "Id of the aggregate.", example: "o-1-000001", required: true}
	pLimit  = param{name: "limit", in: "query", kind: "integer", doc: "Maximum number of items on a page.", least: 1, most: maxLimit}
	pCursor = param{name: "cursor", in: "query", kind: "string", doc: "next_cursor of the previous page. It is opaque, and stays valid while the projection version is the same."}
	pFilter = param{name: "filter", in: "query", kind: "string", example: "state.status == 'paid' && version > 1",
		doc: "CEL condition over id, version, deleted, event_id, event_time, event_offset and state.FIELD, typed by the state's schema."}

	fresh = []param{
		{name: "after_event", in: "query", kind: "string", doc: "Id of an event that the answer must include."},
		{name: "after_position", in: "query", kind: "string", example: "3:1234", doc: "Partition and offset of that event, as acknowledged to the producer. With them, the API can report that the event was passed without being applied."},
		{name: "min_version", in: "query", kind: "integer", least: 1, doc: "Minimum version of the aggregate."},
		{name: "wait", in: "query", kind: "duration", example: "2s", doc: "How long to wait for the event or version, at most 30s."},
	}
)

const (
	late504 = "The event or version did not arrive in time; outcome is pending."
	gone409 = "The state will never include the event; outcome holds the reason."
)

// routes returns all routes of the API.
func routes() []*route {
	return []*route{
		{path: "/v1/openapi.json", name: "getOpenAPI", summary: "This document", handle: (*api).serveDocument},
		{path: "/v1/projections", name: "listProjections", summary: "All projections and their progress", answer: indexAnswer{}, handle: (*api).index},
		{path: "/v1/projections/{name}", name: "listAggregates", summary: "Aggregates of a projection",
			params: append([]param{pName, pFilter,
				{name: "sort", in: "query", kind: "string", example: "-state.total_amount", doc: "id, version, event_time or state.FIELD; a leading - means descending order. All sort keys except id read every aggregate, at most 200000, whether the filter selects it or not."},
				pLimit, pCursor}, fresh[0], fresh[1], fresh[3]),
			answer: listAnswer{}, also: map[int]string{409: gone409, 422: "Too many aggregates to sort.", 504: late504}, handle: (*api).list},
		{path: "/v1/projections/{name}/feed", name: "followProjection", summary: "Changes as they happen, as server-sent events",
			params: []param{pName,
				{name: "id", in: "query", kind: "string", doc: "Id of the only aggregate to follow."}, pFilter,
				{name: "from", in: "query", kind: "string", example: "beginning", doc: "now, or beginning, which sends all existing aggregates first."},
				{name: "Last-Event-ID", in: "header", kind: "string", example: "0-1200,3-57", doc: "Id of the last message seen, from any worker. The feed resumes after it."}},
			handle: (*api).feed},
		{path: "/v1/projections/{name}/{id}", name: "getAggregate", summary: "Current or past state of an aggregate",
			params: append([]param{pName, pID,
				{name: "at_version", in: "query", kind: "integer", least: 1, doc: "Return the state at this version."},
				{name: "at_time", in: "query", kind: "date-time", example: "1997-12-31T00:00:00Z", doc: "Return the state at this time, by event time: the state before the first later event."},
				{name: "at_recorded_time", in: "query", kind: "date-time", example: "1997-12-31T00:00:00Z", doc: "Return the state at this time, by record timestamps."},
				{name: "If-None-Match", in: "header", kind: "string", doc: "ETag of an earlier answer. The answer is 304 if it did not change."}}, fresh...),
			answer: getAnswer{}, also: map[int]string{304: "The answer did not change.", 409: gone409, 504: late504}, handle: (*api).get},
		{path: "/v1/projections/{name}/{id}/history", name: "getHistory", summary: "Events of an aggregate, latest first",
			params: []param{pName, pID, pLimit, {name: "before", in: "query", kind: "integer", least: 1, doc: "Return only events that produced versions below this one."}},
			answer: historyAnswer{}, handle: (*api).history},
		{path: "/v1/projections/{name}/{id}/why", name: "getWhy", summary: "The last event that changed each field of an aggregate",
			params: []param{pName, pID}, answer: whyAnswer{}, handle: (*api).why},
		{path: "/v1/projections/{name}/{id}/diff", name: "getDiff", summary: "Differences between two versions of an aggregate",
			params: []param{pName, pID,
				{name: "from", in: "query", kind: "integer", doc: "Older version; 0 is the state before the first event. The default is the version before the newer one."},
				{name: "to", in: "query", kind: "integer", least: 1, doc: "Newer version. The default is the latest."}},
			answer: diffAnswer{}, handle: (*api).diff},
		{path: "/v1/events", name: "listEvents", summary: "Events of a type, latest first",
			params: []param{{name: "type", in: "query", kind: "string", example: "OrderPaid", doc: "Event type, with or without its namespace.", required: true}, pLimit, pCursor},
			answer: eventsAnswer{}, handle: (*api).events},
		{path: "/v1/events/{id}", name: "getEvent", summary: "An event by its id",
			params: []param{{name: "id", in: "path", kind: "string", doc: "Id of the event. If the topic declares an identity with several parts: a JSON list of them.", required: true},
				{name: "aggregate", in: "query", kind: "string", doc: "Id of the aggregate. Without it, the event of any aggregate is shown: equal ids of two aggregates are two events."}},
			answer: eventAnswer{}, handle: (*api).event},
		{path: "/v1/blocked/{name}", name: "listBlocked", summary: "Aggregates that wait for a release, longest wait first",
			params: []param{pName, pLimit, pCursor}, answer: blockedAnswer{}, handle: (*api).blocked},
		{method: http.MethodPost, path: "/v1/blocked/{name}/{id}/release", name: "release", summary: "Fold the waiting events of a blocked aggregate again",
			params: []param{pName, pID, {name: "skip", in: "query", kind: "boolean", doc: "Skip the event that blocked the aggregate, or skip the gap."}},
			answer: releasedAnswer{}, also: map[int]string{
				404: "The aggregate does not exist.", 409: "The aggregate is not blocked.",
				504: "The responsible worker did not answer. The release may or may not have happened."}, handle: (*api).release},
	}
}
