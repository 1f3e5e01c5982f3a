package doctor

import "context"

// clock says whether the system keeps its clock right. Whether it is right, other members know.
func (m Machine) clock(context.Context) []Finding {
	synced, known := clockSynced()
	switch {
	case !known:
		return nil
	case synced:
		return []Finding{{Check: CheckClock, State: OK, Text: "the system keeps its clock synchronised"}}
	}
	return []Finding{{Check: CheckClock, State: Warn, Text: "the system says that its clock is not synchronised", Fix: "sudo timedatectl set-ntp true, or start another time service (chrony, ntpd); inside a container or a virtual machine: on the host"}}
}
