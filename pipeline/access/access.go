// Package access decides who may call the HTTP servers of Millrace's programs.
//
//   - access.go: roles and callers;
//   - list.go: the file with tokens and certificates;
//   - routes.go: the role of each route.
//
// All values are immutable.
package access

import (
	"fmt"
	"slices"
	"strings"
)

// A Role is a permission of a caller.
type Role string

// The roles. [Admin] includes all others, and [Worker] includes [Read], because workers
// pass questions on.
const (
	Read   Role = "read"   // ask about states, history and feeds
	Write  Role = "write"  // send events
	Admin  Role = "admin"  // change what Millrace has done: release, skip, profiles
	Worker Role = "worker" // ask other workers
)

// Public is the role of routes that everyone may call.
const Public Role = ""

// Roles returns all roles, for messages and documents.
func Roles() []Role { return []Role{Read, Write, Admin, Worker} }

// ParseRole returns the role with a name.
func ParseRole(name string) (Role, error) {
	if r := Role(name); slices.Contains(Roles(), r) {
		return r, nil
	}
	all := make([]string, len(Roles()))
	for i, r := range Roles() {
		all[i] = string(r)
	}
	return Public, fmt.Errorf("there is no role %q: the roles are %s", name, strings.Join(all, ", "))
}

// A Caller is someone who calls a server.
type Caller struct {
	Name  string // for the log; "" if the caller is not known by name
	Roles []Role
}

// Has reports whether a caller has a role.
func (c Caller) Has(r Role) bool {
	has := func(r Role) bool { return slices.Contains(c.Roles, r) }
	return r == Public || has(r) || has(Admin) || r == Read && has(Worker)
}
