"""Learning :class:`capsdesc.CAPSMatcher` from camera poses: pairs described once, labels from epipolar lines."""
